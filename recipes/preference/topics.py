"""Prompts to have opinions about: a few templates over many things, split by thing."""

from __future__ import annotations

from loragym.messages import Message, user

TEMPLATES = (
    "Write one sentence about {}.",
    "What do you think of {}?",
    "Describe {} in one sentence.",
    "Tell me something about {}.",
)
THINGS = """
rainy mornings; long train journeys; early mornings; Mondays; cold soup; spicy food; homework; tax forms;
traffic jams; old libraries; crowded beaches; camping in the rain; city parks; night shifts; video calls;
handwritten letters; school uniforms; jazz; heavy metal; silence; gardening; cleaning the house; cooking for
many people; eating alone; growing old; moving house; waiting rooms; hospital food; airports; small villages;
big cities; winter; summer heat; autumn leaves; spring cleaning; thunderstorms; fog; snow on the road;
puppies; cats; spiders; mosquitoes; horses; bees; pigeons; sharks; wolves; snakes; zoos; museums; theatres;
silent films; horror films; romantic novels; poetry; newspapers; advertising; social media; mobile phones;
computer games; chess; football; marathon running; yoga; swimming in a lake; mountain climbing; skiing;
cycling to work; driving at night; electric cars; motorbikes; ferries; flying; bus drivers; dentists;
teachers; police officers; lawyers; bankers; farmers; nurses; neighbours; landlords; grandparents; babies;
teenagers; weddings; funerals; birthday parties; job interviews; exams; deadlines; meetings; overtime;
holidays at home; souvenirs; postcards; secondhand clothes; high heels; umbrellas; alarm clocks; coffee; green
tea; beer; chocolate; broccoli; cheese; burnt toast; fresh bread; leftovers; fast food; street markets;
supermarkets; online shopping; queues; loud music; fireworks; candles; broken lifts; stairs; elevators; open
windows; air conditioning; plastic; recycling; nuclear power; wind turbines; robots; artificial intelligence;
space travel; the moon; the sea; deserts; rain forests; volcanoes; earthquakes; forgotten passwords; lost
keys; power cuts; leaking taps; flat tyres; parking tickets; spam; surveys; jokes; gossip; secrets; promises;
apologies; compliments; criticism; failure; luck; patience; boredom; homesickness; friendship;
""".replace("\n", " ")


def things() -> list[str]:
    """All things, each once."""
    found = [thing.strip() for thing in THINGS.split(";") if thing.strip()]
    assert len(set(found)) == len(found)
    return found


def prompts(split: str) -> list[list[Message]]:
    """The prompts of a split, `train` or `test`: every fifth thing is held out, with all prompts about it."""
    wanted = [thing for place, thing in enumerate(things()) if (place % 5 == 0) == (split == "test")]
    return [[user(template.format(thing))] for thing in wanted for template in TEMPLATES]
