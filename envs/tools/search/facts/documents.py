"""The documents of the corpus: a short paragraph about each thing, whose first sentence says the most important."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .sources import Airport, City, Country, Currency, Element, Language, World


class FactDocument(NamedTuple):
    """A document before it is written.

    Attributes:
        id: kind and code, such as "country/FR".
        lead: the first sentence, which is the whole text of the short corpus.
        rest: the other sentences.
        owner: the document whose split this one shares: a city belongs to its country.
    """

    id: str
    title: str
    lead: str
    rest: str
    owner: str


def fact_documents(world: World) -> dict[str, FactDocument]:
    """All documents by id, in order; no two have the same title."""
    written = [
        *(_country(world, country) for country in world.countries.values()),
        *(_city(world, city) for city in world.cities.values()),
        *(_airport(world, airport) for airport in world.airports.values()),
        *(_element(element) for element in world.elements.values()),
        *(_currency(world, currency) for currency in world.currencies.values()),
        *(_language(world, language) for language in world.languages.values()),
    ]
    return {document.id: document for document in _with_own_titles(written)}


def country_id(code: str) -> str:
    return f"country/{code}"


def city_id(number: int) -> str:
    return f"city/{number}"


def airport_id(code: str) -> str:
    return f"airport/{code}"


def element_id(number: int) -> str:
    return f"element/{number}"


def currency_id(code: str) -> str:
    return f"currency/{code}"


def language_id(code: str) -> str:
    return f"language/{code}"


def _with_own_titles(documents: Sequence[FactDocument]) -> Iterator[FactDocument]:
    count = Counter(document.title for document in documents)
    for document in documents:
        kind = document.id.partition("/")[0]
        shared = count[document.title] > 1 and kind != "country"
        yield document._replace(title=f"{document.title} ({kind})") if shared else document


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _country(world: World, country: Country) -> FactDocument:
    kind = "country" if country.is_state else "territory"
    name = country.spoken[0].upper() + country.spoken[1:]
    where = "the far south" if country.continent == "Antarctica" else country.continent
    lead = f"{name} is a {kind} in {where}"
    lead += f" whose capital is {country.capital}." if country.capital else "."
    rest = []
    if country.currency:
        currency = world.currencies[country.currency]
        rest.append(f"Its currency is the {currency.name} ({currency.code}).")
    if country.calling_code:
        rest.append(f"Its calling code is {country.calling_code}.")
    if country.domain:
        rest.append(f"Its internet domain is {country.domain}.")
    if country.languages:
        names = [world.languages[code].name for code in country.languages if code in world.languages]
        rest.append(f"Official language: {_and(names)}.")
    if country.population:
        rest.append(f"It has {country.population:,} inhabitants on {country.area:,} square kilometres.")
    if country.neighbours:
        rest.append(f"It borders {_and([world.countries[code].spoken for code in country.neighbours])}.")
    return FactDocument(country_id(country.code), country.name, lead, " ".join(rest), country_id(country.code))


def _city(world: World, city: City) -> FactDocument:
    country = world.countries[city.country]
    lead = f"{city.name} is a city in {f'{city.state}, ' if city.state else ''}{country.spoken}."
    if city.is_capital:
        lead = f"{city.name} is the capital city of {country.spoken}."
    rest = f"It has {city.population:,} inhabitants. Its time zone is {city.timezone}."
    title = city.name if city.is_unique else f"{city.name}, {city.state or country.name}"
    return FactDocument(city_id(city.number), title, lead, rest, country_id(city.country))


def _airport(world: World, airport: Airport) -> FactDocument:
    city = world.cities[airport.city]
    lead = f"{airport.name}, code {airport.code}, is the airport of the city of {city.name}."
    rest = f"Its ICAO code is {airport.icao}." if airport.icao else ""
    if airport.elevation > 0:
        rest += f" It lies {airport.elevation:,} feet above the sea."
    return FactDocument(airport_id(airport.code), airport.name, lead, rest.strip(), country_id(city.country))


def _element(element: Element) -> FactDocument:
    lead = (
        f"{element.name} is the chemical element with the symbol {element.symbol} and atomic number {element.number}."
    )
    group = f" and group {element.group}" if element.group else ""
    rest = f"It stands in period {element.period}{group} of the periodic table."
    if element.discoverers and element.place:
        rest += f" It was discovered in {element.year} in {element.place} by {element.discoverers}."
    return FactDocument(element_id(element.number), element.name, lead, rest, element_id(element.number))


def _currency(world: World, currency: Currency) -> FactDocument:
    own = currency_id(currency.code)
    countries = [world.countries[code] for code in currency.countries]
    if len(countries) == 1:
        lead = f"The {currency.name}, code {currency.code}, is the currency of {countries[0].spoken}."
        return FactDocument(own, currency.name, lead, _symbol(currency), country_id(countries[0].code))
    lead = f"The {currency.name}, code {currency.code}, is the currency of {len(countries)} countries and territories."
    return FactDocument(own, currency.name, lead, _symbol(currency), own)


def _symbol(currency: Currency) -> str:
    return f"Its symbol is {currency.symbol}." if currency.symbol else ""


def _language(world: World, language: Language) -> FactDocument:
    own = language_id(language.code)
    names = [world.countries[code].spoken for code in language.countries]
    where = _and(names) if len(names) <= 4 else f"{len(names)} countries and territories"
    lead = f"{language.name} is an official language of {where}."
    rest = f"Its ISO 639 code is {language.code}."
    if language.own_name and language.own_name != language.name:
        rest += f" Its speakers call it {language.own_name}."
    owner = country_id(language.countries[0]) if len(names) == 1 else own
    return FactDocument(own, language.name, lead, rest, owner)
