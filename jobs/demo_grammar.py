"""The little world of the demo model: facts, the sentences that tell them, and the prompts that ask for them.

A topic is a table of facts and some sentence templates over its columns. Stories (the training text) and
prompts are drawn from the topics with the caller's random generator alone, so a seed fixes every character.
Some text is outside ASCII on purpose: there a token may hold half a character. This module knows nothing of
tokens or models.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Row = Mapping[str, str]


def table(text: str) -> list[Row]:
    """The rows under a line of column names. `_` stands for a space inside a cell."""
    names, *lines = (line.split() for line in text.strip().splitlines())
    return [dict(zip(names, (cell.replace("_", " ") for cell in line), strict=True)) for line in lines]


ANIMALS = table("""
    animal  home    food     sound    colour
    bee     hive    nectar   hums     golden
    fox     den     berries  barks    red
    cat     house   fish     purrs    black
    owl     tree    mice     hoots    brown
    frog    pond    flies    croaks   green
    horse   stable  hay      neighs   white
    duck    reeds   bread    quacks   yellow
    wolf    forest  meat     howls    grey
    mouse   barn    cheese   squeaks  tiny
    pig     sty     apples   grunts   pink
""")
PEOPLE = table("""
    person  city       instrument  greeting
    Anna    London     piano       Hello!
    José    Málaga     guitar      ¡Hola!
    Jürgen  Köln       trumpet     Grüß_dich!
    Chloé   Orléans    flute       Ça_va?
    Søren   Århus      drums       Hej!
    Łukasz  Kraków     violin      Cześć!
    Olga    Москва     cello       Привет!
    Yuki    京都       koto        こんにちは!
    Ben     Dublin     harp        Hi!
    Zoë     Zürich     organ       Grüezi!
""")
SKIES = table("""
    sign  sky        degrees  advice
    ☀     sunny      24       wear_a_hat
    ☁     cloudy     15       take_a_coat
    ☂     rainy      9        take_an_umbrella
    ❄     snowy      -5       build_a_snowman
    🌈    über-blue  18       look_up
""")
DISHES = table("""
    dish      main      extra   taste
    crème     milk      honey   sweet
    soup      carrots   onions  salty
    jam       cherries  sugar   sweet
    müsli     oats      nuts    sweet
    lemonade  lemons    sugar   sour
    purée     potatoes  butter  salty
""")
PLACES = {"street": 17, "river": 14, "bridge": 12, "field": 10, "road": 9, "garden": 8, "border": 7}
PLACES |= {"room": 6, "park": 5, "square": 4}
LOOKS = ("old", "big", "far", "blue")
THINGS = ("sea", "castle", "train", "mill", "café", "hills")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
CHOICES = {  # what any sentence may name besides the columns of its row
    "mood": ("quiet", "old", "happy", "hungry", "brave"),
    "friend": ("baker", "doctor", "farmer", "king", "teacher", "cook", "singer", "sailor"),
    "gift": ("book", "ball", "cake", "lamp", "rose", "ring", "boat", "hat", "pen", "cup"),
}


def skips() -> list[Row]:
    """The line with its many ends, and the other places by weight, with one end each.

    The line is the likeliest place, so greedy search takes it. None of its ends is likely, so beam search
    does not.
    """
    ends = [("line", f"to a place where I can see the {look} {thing}") for look in LOOKS for thing in THINGS]
    ends += [(place, f"to the other side of the {place}") for place in PLACES for _ in range(PLACES[place])]
    return [{"place": place, "end": end} for place, end in ends]


def counts() -> list[Row]:
    """Every run of at least three numbers."""
    runs = [NUMBERS[i:j] for i in range(len(NUMBERS)) for j in range(i + 3, len(NUMBERS) + 1)]
    return [{"first": first, "second": second, "rest": ", ".join(rest)} for first, second, *rest in runs]


def sums() -> list[Row]:
    """Every sum of two numbers from one to six."""
    return [{"a": str(a), "b": str(b), "sum": str(a + b)} for a in range(1, 7) for b in range(1, 7)]


def days() -> list[Row]:
    """Every day of the week with the one after it."""
    return [{"day": day, "next": following} for day, following in zip(DAYS, DAYS[1:] + DAYS[:1], strict=True)]


@dataclass(frozen=True)
class Topic:
    """Facts and the sentences that tell them. What stands before a sentence's `|` makes a prompt."""

    rows: Sequence[Row]
    sentences: Sequence[str]
    weight: int = 1


ANIMAL_SENTENCES = (
    "Every {animal}| likes {food} and lives in the {home}.",
    "The {mood} {animal}| {sound} because it wants {food}.",
    "Where does the {animal} live?| The {animal} lives in the {home}.",
    "In the {home}| I see a {colour} {animal}.",
)
SKIP_SENTENCES = (
    "I skip| across the {place} {end}.",
    "I skip across the| {place} {end}.",
    "I skip across the {place}| {end}.",
)
PERSON_SENTENCES = (
    "{person}| lives in {city} and plays the {instrument}.",
    "{person} from {city} says:| {greeting}",
    "{person} gives the {friend} a {gift}.| Now the {friend} has a {gift} from {person}.",
)
WEATHER_SENTENCES = (
    "Today the sky| is {sky}, says the {friend}.",
    "Weather: {sign}| {sky}, {degrees} degrees, so {advice}!",
    "When it is {sky}| {sign}, people {advice}.",
)
KITCHEN_SENTENCES = (
    "To make {dish}| you need {main} and {extra}.",
    "The {dish} tastes| {taste} because of the {extra}.",
)
TOPICS = {
    "animal": Topic(ANIMALS, ANIMAL_SENTENCES),
    "skip": Topic(skips(), SKIP_SENTENCES, weight=2),
    "person": Topic(PEOPLE, PERSON_SENTENCES, weight=3),
    "weather": Topic(SKIES, WEATHER_SENTENCES),
    "kitchen": Topic(DISHES, KITCHEN_SENTENCES),
    "count": Topic(counts(), ("Count: {first},| {second}, {rest}.", "Count: {first}, {second},| {rest}.")),
    "sum": Topic(sums(), ("{a} + {b} =| {sum}.",)),
    "day": Topic(days(), ("After {day}| comes {next}.", "If today is {day},| tomorrow is {next}.")),
}


def write_sentence(topic: Topic, rng: random.Random) -> str:
    """One sentence with the `|` of its template still in it."""
    choices = {slot: rng.choice(words) for slot, words in CHOICES.items()}
    return rng.choice(topic.sentences).format(**choices, **rng.choice(topic.rows))


def write_story(rng: random.Random) -> str:
    """One to three sentences on any topics; half of the stories have one."""
    topics = list(TOPICS.values())
    chosen = rng.choices(topics, [topic.weight for topic in topics], k=rng.choice((1, 1, 2, 3)))
    return " ".join(write_sentence(topic, rng).replace("|", "") for topic in chosen)


def write_beginnings(topic: Topic, rng: random.Random) -> list[str]:
    """Eight beginnings of sentences, all different, in the order they were drawn."""
    beginnings: list[str] = []
    while len(beginnings) < 8:
        beginning = write_sentence(topic, rng).split("|")[0]
        if beginning not in beginnings:
            beginnings.append(beginning)
    return beginnings


def write_prompts(rng: random.Random) -> dict[str, list[str]]:
    """Prompts by topic: the beginnings of each, longer ones with a story before them, and the empty one.

    The first prompt is the one that shows best how strategies differ.
    """
    prompts = {name: write_beginnings(topic, rng) for name, topic in TOPICS.items()}
    prompts["story"] = [f"{write_story(rng)} {prompts[name][0]}" for name in TOPICS]
    skips = sorted(prompts.pop("skip"), key=lambda prompt: prompt != "I skip across the")
    return {"skip": skips, **prompts, "empty": [""]}
