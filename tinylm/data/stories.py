"""stories: a seeded generator of short English children's stories, the corpus that needs no download.

A story is a fixed course of events (someone has a friend, wants a thing, loses it, finds it again) filled with drawn
names, things and places; who owns the thing and where it was lost matter again at the end. Story i depends only on
(seed, i), and Python's `random.Random` gives the same numbers on every platform.
"""

import random
from collections.abc import Iterator

VERSION = 1
NAMES = ("Lily", "Ben", "Mia", "Tom", "Sara", "Max", "Anna", "Leo", "Zoe", "Sam", "Ella", "Jack", "Nora", "Finn")
ANIMALS = ("cat", "dog", "rabbit", "bear", "duck", "mouse", "fox", "bird", "frog", "pony", "hen", "owl")
SIZES = ("little", "big", "brave", "shy", "happy", "kind", "sleepy", "clever")
COLORS = ("red", "blue", "green", "yellow", "pink", "white", "brown", "golden")
THINGS = ("ball", "kite", "hat", "boat", "drum", "book", "doll", "cup", "bell", "scarf", "lamp", "wagon")
PLACES = ("garden", "forest", "park", "barn", "river", "kitchen", "hill", "school", "beach", "old tower")
HIDING = ("under a bush", "behind a tree", "in the tall grass", "inside a box", "near a rock", "under a bench")
MISHAPS = ("the wind took it away", "it rolled away", "a crow picked it up", "it slipped and was gone")
FEELINGS = ("sad", "worried", "cross", "upset")
THANKS = ("hugged", "thanked", "kissed", "smiled at")
MEALS = ("cake", "soup", "an apple", "bread and jam", "cookies", "warm milk")
LESSONS = (
    "a good friend helps you look",
    "it is good to share",
    "you should take care of your things",
    "asking for help is brave",
)


def story(seed: int, number: int) -> str:
    """The text of one story, which ends with a newline."""
    draw = random.Random(f"tinylm-stories-{VERSION}-{seed}-{number}").choice
    name, animal, size, color = draw(NAMES), draw(ANIMALS), draw(SIZES), draw(COLORS)
    thing, place, hiding, mishap = draw(THINGS), draw(PLACES), draw(HIDING), draw(MISHAPS)
    friend = draw([other for other in NAMES if other != name])
    helper = draw((f"{friend}", f"the {animal}"))
    sentences = [
        draw(("Once upon a time there was", "One day there was", "Long ago there lived"))
        + f" a {size} {animal}. The {animal} lived with {name}.",
        f"{name} had a {color} {thing} and loved it very much.",
        f'One morning {name} and the {animal} went to the {place}. "{draw(("Let us play", "Look what I have"))}!" '
        f"said {name} to {friend}.",
        f"They played with the {color} {thing}, but {mishap}.",
        f'{name} was very {draw(FEELINGS)}. "Where is my {thing}?" asked {name}.',
        f"They looked all over the {place}. At last {helper} found the {color} {thing} {hiding}.",
        f"{name} {draw(THANKS)} {helper}.",
        f"Then they all went home and had {draw(MEALS)}.",
        f"{name} learned that {draw(LESSONS)}.",
    ]
    return " ".join(sentences) + "\n"


def stories(seed: int, count: int) -> Iterator[str]:
    """The first `count` stories of a seed."""
    return (story(seed, number) for number in range(count))
