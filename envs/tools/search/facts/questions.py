"""The questions of the corpus, each with the searches that answer it.

A question of one hop asks a document for one fact. A question of two hops names a thing by its bond with another, so
that a first document has to be found before it is known which second one to look for.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..questions import Step
from ..text import folded, normalised
from .documents import (
    FactDocument,
    airport_id,
    city_id,
    country_id,
    currency_id,
    element_id,
    language_id,
)
from .sources import Country, World

CITY_TWO_HOPS = 2
"""How many of the five facts about its country are asked for by way of each city."""


class FactQuestion(NamedTuple):
    """A question before it is written.

    Attributes:
        kind: what is asked for, such as "city_country".
        asked: the thing that the question names.
        text: the question.
        answers: all that counts as right; the first is what the document says.
        steps: the searches; what the last one finds is the answer.
    """

    kind: str
    asked: str
    text: str
    answers: tuple[str, ...]
    steps: tuple[Step, ...]

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.asked}"


class _CountryFact(NamedTuple):
    """What can be asked about a country: the question, with a place for the country, and words to search for."""

    question: str
    words: str

    def ask(self, country: str) -> str:
        return self.question.format(country)


_COUNTRY_FACTS = {
    "capital": _CountryFact("What is the capital of {}?", "country capital"),
    "continent": _CountryFact("On which continent is {}?", "country continent"),
    "currency": _CountryFact("What is the currency of {}?", "country currency"),
    "calling_code": _CountryFact("What is the telephone calling code of {}?", "country calling code"),
    "domain": _CountryFact("What is the internet domain of {}?", "country internet domain"),
}


def fact_questions(world: World, documents: dict[str, FactDocument]) -> list[FactQuestion]:
    """All questions that have one answer, in order.

    Left out are questions that answer themselves, questions that could be put in the same words about two things, and
    questions about things whose name is shared.
    """
    written = [
        *_about_countries(world),
        *_about_cities(world),
        *_about_airports(world),
        *_about_elements(world),
        *_about_currencies(world),
        *_about_languages(world),
    ]
    texts = Counter(folded(question.text) for question in written)
    return [
        question
        for question in written
        if texts[folded(question.text)] == 1
        and all(step.document in documents for step in question.steps)
        and not _answers_itself(question)
    ]


def _answers_itself(question: FactQuestion) -> bool:
    asked = f" {normalised(question.text)} "
    found = (step.found for step in question.steps)
    return any(f" {normalised(answer)} " in asked for answer in (*question.answers, *found))


def _accepted(answer: str, *others: str | None) -> tuple[str, ...]:
    """An answer and its other forms, without accents as well; one for each normalised form."""
    given = [answer, *(other for other in others if other)]
    plain = [_without_accents(text) for text in given]
    by_form = {normalised(text): text for text in reversed([*given, *plain])}
    return tuple(text for text in dict.fromkeys([*given, *plain]) if by_form[normalised(text)] == text)


def _without_accents(text: str) -> str:
    """Letter by letter, so that case stays."""
    return "".join(
        char if char.isascii() else (folded(char) if char.islower() else folded(char).upper()) for char in text
    )


def _pick(name: str, count: int) -> int:
    """A number below `count` that depends on the name alone."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % count


def _one_of(name: str, ways: Sequence[str]) -> str:
    return ways[_pick(name, len(ways))]


def _fact_of(world: World, country: Country, fact: str) -> tuple[str, ...] | None:
    """The answers to a question about a country; None if it cannot be asked."""
    if not country.is_state:
        return None
    if fact == "capital":
        if not country.capital or not country.has_one_capital:
            return None
        return _accepted(country.capital, *country.capital_aliases)
    if fact == "continent":
        return (country.continent,)
    if fact == "currency" and country.currency:
        return _accepted(world.currencies[country.currency].name, country.currency)
    if fact == "calling_code" and country.calling_code:
        return _accepted(country.calling_code, country.calling_code.replace("-", " "))
    if fact == "domain" and country.domain:
        return (country.domain,)
    return None


def _about_countries(world: World) -> Iterator[FactQuestion]:
    capitals = {city.country: city for city in world.cities.values() if city.is_capital}
    for country in world.countries.values():
        own = country_id(country.code)
        for fact, about in _COUNTRY_FACTS.items():
            if answers := _fact_of(world, country, fact):
                step = Step(f"{country.name} {about.words}", own, answers[0])
                yield FactQuestion(f"country_{fact}", country.name, about.ask(country.spoken), answers, (step,))
        capital = capitals.get(country.code)
        if country.is_state and capital and capital.is_unique:
            name = capital.name
            step = Step(f"{name} capital city", city_id(capital.number), country.name)
            answers = _accepted(country.name, *country.aliases)
            yield FactQuestion("capital_country", name, f"Of which country is {name} the capital?", answers, (step,))
            yield from _by_way_of(world, "capital", name, f"the country whose capital is {name}", step, country)


def _by_way_of(
    world: World,
    kind: str,
    asked: str,
    description: str,
    first: Step,
    country: Country,
    facts: Sequence[str] = tuple(_COUNTRY_FACTS),
) -> Iterator[FactQuestion]:
    """Questions about a country that is described, not named."""
    for fact in facts:
        answers = _fact_of(world, country, fact)
        if answers is None or kind == fact or folded(answers[0]) == folded(asked):
            continue
        about = _COUNTRY_FACTS[fact]
        second = Step(f"{country.name} {about.words}", country_id(country.code), answers[0])
        yield FactQuestion(f"{kind}_country_{fact}", asked, about.ask(description), answers, (first, second))


def _about_cities(world: World) -> Iterator[FactQuestion]:
    for city in world.cities.values():
        country = world.countries[city.country]
        if not city.is_unique or not country.is_state:
            continue
        own = city_id(city.number)
        answers = _accepted(country.name, *country.aliases)
        step = Step(f"{city.name} city", own, country.name)
        ways = ("In which country is the city of {}?", "In what country does the city of {} lie?")
        yield FactQuestion("city_country", city.name, _one_of(own, ways).format(city.name), answers, (step,))
        zone = Step(f"{city.name} city time zone", own, city.timezone)
        yield FactQuestion(
            "city_timezone", city.name, f"What is the time zone of the city of {city.name}?", (city.timezone,), (zone,)
        )
        if city.state:
            state = Step(step.query, own, city.state)
            yield FactQuestion(
                "city_state",
                city.name,
                f"In which state of the United States is the city of {city.name}?",
                _accepted(city.state),
                (state,),
            )
        facts = sorted(_COUNTRY_FACTS, key=lambda fact: _pick(f"{own} {fact}", 2**32))[:CITY_TWO_HOPS]
        yield from _by_way_of(
            world, "city", city.name, f"the country in which the city of {city.name} lies", step, country, facts
        )


def _about_airports(world: World) -> Iterator[FactQuestion]:
    for airport in world.airports.values():
        own, city = airport_id(airport.code), world.cities[airport.city]
        country = world.countries[city.country]
        by_code = f"the airport with the code {airport.code}"
        step = Step(f"airport code {airport.code}", own, city.name)
        yield FactQuestion("airport_city", airport.code, f"Which city has {by_code}?", _accepted(city.name), (step,))
        named = Step(airport.name, own, airport.code)
        yield FactQuestion(
            "airport_code", airport.name, f"What is the code of {airport.name}?", (airport.code,), (named,)
        )
        if not country.is_state:
            continue
        second = Step(f"{city.name} city", city_id(city.number), country.name)
        answers = _accepted(country.name, *country.aliases)
        yield FactQuestion("airport_country", airport.code, f"In which country is {by_code}?", answers, (step, second))
        zone = Step(f"{city.name} city time zone", city_id(city.number), city.timezone)
        text = f"What is the time zone of the city that has {by_code}?"
        yield FactQuestion("airport_city_timezone", airport.code, text, (city.timezone,), (step, zone))


def _about_elements(world: World) -> Iterator[FactQuestion]:
    by_discoverer = defaultdict(list)
    for element in world.elements.values():
        if element.discoverers and element.has_one_discoverer:
            by_discoverer[folded(element.discoverers)].append(element)
    for element in world.elements.values():
        own, name = element_id(element.number), element.name
        by_name = f"{name} chemical element"

        def one(kind: str, asked: str, text: str, answer: str, query: str, own: str = own) -> FactQuestion:
            return FactQuestion(kind, asked, text, _accepted(answer), (Step(query, own, answer),))

        symbol, number = element.symbol, str(element.number)
        yield one("element_symbol", name, f"What is the chemical symbol of {name.lower()}?", symbol, by_name)
        yield one("element_number", name, f"What is the atomic number of {name.lower()}?", number, by_name)
        query = f"chemical element symbol {symbol}"
        yield one("symbol_element", symbol, f"Which chemical element has the symbol {symbol}?", name, query)
        yield one(
            "number_element",
            number,
            f"Which chemical element has the atomic number {number}?",
            name,
            f"chemical element atomic number {number}",
        )
        if not element.discoverers or not element.has_one_discoverer:
            continue
        query = f"{name} discovered"
        yield one("element_year", name, f"In which year was {name.lower()} discovered?", str(element.year), query)
        yield one("element_discoverer", name, f"Who discovered {name.lower()}?", element.discoverers, query)
        if len(by_discoverer[folded(element.discoverers)]) == 1:
            described = f"the chemical element that was discovered by {element.discoverers}"
            query = f"discovered by {element.discoverers}"
            yield one("discoverer_symbol", element.discoverers, f"What is the symbol of {described}?", symbol, query)
        if element.country and world.countries[element.country].name == element.place:
            country = world.countries[element.country]
            first = Step(f"{name} discovered", own, country.name)
            described = f"the country in which {name.lower()} was discovered"
            yield from _by_way_of(
                world, "element", name, described, first, country, ("capital", "domain", "calling_code")
            )


def _about_currencies(world: World) -> Iterator[FactQuestion]:
    for currency in world.currencies.values():
        own = currency_id(currency.code)
        coded = Step(f"{currency.name} currency code", own, currency.code)
        yield FactQuestion(
            "currency_code", currency.name, f"What is the code of the {currency.name}?", (currency.code,), (coded,)
        )
        named = Step(f"currency code {currency.code}", own, currency.name)
        yield FactQuestion(
            "code_currency",
            currency.code,
            f"Which currency has the code {currency.code}?",
            _accepted(currency.name),
            (named,),
        )
        if len(currency.countries) != 1 or not (country := world.countries[currency.countries[0]]).is_state:
            continue
        by_code = Step(f"currency code {currency.code}", own, country.name)
        answers = _accepted(country.name, *country.aliases)
        described = f"the currency with the code {currency.code}"
        yield FactQuestion("currency_country", currency.code, f"Which country uses {described}?", answers, (by_code,))
        yield from _by_way_of(
            world,
            "currency",
            currency.code,
            f"the country that uses {described}",
            by_code,
            country,
            ("capital", "continent", "domain", "calling_code"),
        )


def _about_languages(world: World) -> Iterator[FactQuestion]:
    for language in world.languages.values():
        own, name = language_id(language.code), language.name
        coded = Step(f"{name} language code", own, language.code)
        yield FactQuestion(
            "language_code", name, f"What is the ISO 639 code of the language {name}?", (language.code,), (coded,)
        )
        if len(language.countries) != 1 or not (country := world.countries[language.countries[0]]).is_state:
            continue
        step = Step(f"{name} official language", own, country.name)
        answers = _accepted(country.name, *country.aliases)
        text = f"Of which country is {name} an official language?"
        yield FactQuestion("language_country", name, text, answers, (step,))
        described = f"the country of which {name} is an official language"
        yield from _by_way_of(world, "language", name, described, step, country)
