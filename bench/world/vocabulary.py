"""Word lists and phrases of the controlled world.

The lists are short, because tiny models learn to copy unseen words last.
"""

from __future__ import annotations

NAMES = ("Anna", "Bob", "Carl", "Dana", "Emil", "Fay", "Hugo", "Iris", "Jack", "Mia", "Nora", "Omar")
CITIES = ("Paris", "Rome", "Madrid", "Oslo", "Vienna", "Cairo", "Athens", "Lima", "Tokyo", "Lisbon")
JOBS = ("baker", "nurse", "pilot", "farmer", "painter", "tailor", "lawyer", "singer", "plumber", "teacher")
TOPICS = (
    "garden",
    "river",
    "party",
    "winter",
    "village",
    "concert",
    "journey",
    "kitchen",
    "beach",
    "library",
)

TONES = {
    "cheerful": ("bright", "lovely", "sunny", "merry", "delightful"),
    "sad": ("lonely", "gloomy", "empty", "bleak", "weary"),
    "calm": ("quiet", "peaceful", "gentle", "still", "soft"),
    "grand": ("splendid", "majestic", "vast", "noble", "glorious"),
}

# In "odd one out", one word comes from another group than the rest. Lists in coding mix all groups.
GROUPS = {
    "animals": ("dog", "horse", "sheep", "tiger", "rabbit"),
    "fruits": ("apple", "lemon", "cherry", "plum", "mango"),
    "colours": ("red", "blue", "green", "purple", "yellow"),
    "tools": ("hammer", "drill", "ladder", "chisel", "wrench"),
}
ITEMS = tuple(word for group in GROUPS.values() for word in group)

PERSONAS = {
    "pirate": "Ahoy",
    "robot": "Beep",
    "knight": "Hail",
    "cowboy": "Howdy",
    "wizard": "Behold",
    "ghost": "Boo",
    "butler": "Welcome",
    "sailor": "Aye",
    "monk": "Peace",
    "surfer": "Aloha",
}

SYMBOLS = {
    "iron": "Fe",
    "gold": "Au",
    "silver": "Ag",
    "copper": "Cu",
    "lead": "Pb",
    "tin": "Sn",
    "carbon": "C",
    "helium": "He",
    "oxygen": "O",
    "sodium": "Na",
}
PLANETS = {
    "first": "Mercury",
    "second": "Venus",
    "third": "Earth",
    "fourth": "Mars",
    "fifth": "Jupiter",
    "sixth": "Saturn",
    "seventh": "Uranus",
    "eighth": "Neptune",
}
CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Norway": "Oslo",
    "Austria": "Vienna",
    "Egypt": "Cairo",
    "Greece": "Athens",
    "Peru": "Lima",
    "Japan": "Tokyo",
    "Portugal": "Lisbon",
}
AUTHORS = {
    "Hamlet": "Shakespeare",
    "Emma": "Austen",
    "Ulysses": "Joyce",
    "Faust": "Goethe",
    "Candide": "Voltaire",
    "Walden": "Thoreau",
    "Dracula": "Stoker",
    "Inferno": "Dante",
    "Nostromo": "Conrad",
    "Carmen": "Merimee",
}

COUNTS = ("one", "two", "three")  # In words; a list or a note has at most three parts.
LARGEST_OPERAND = 9  # In sums. With 12, a small model knew only a third of the sums after the base stage.
NUMBERS = tuple(str(number) for number in range(2 * LARGEST_OPERAND + 2))

# Two phrasings per category: an answer avoids a word by using the other phrasing. Each `{}` takes one slot of
# the sentence, in order; a single `{}` takes all of them, joined by commas.
FORMS = {
    "writing": ("The {} is {}.", "My {} looks {}."),
    "roleplay": ("{}, dear {}.", "{}, good {}."),
    "reasoning": ("It must be {}.", "That is surely {}."),
    "math": ("The answer is {}.", "That makes {}."),
    "coding": ("The result is {}.", "This gives {}."),
    "extraction": ("The record says {}.", "It lists {}."),
    "stem": ("The answer is {}.", "That would be {}."),
    "humanities": ("The answer is {}.", "That would be {}."),
}

OPENERS = ("Well", "So", "Look", "Listen", "Now", "Honestly")
CLOSERS = ("indeed", "today", "friend", "always", "again", "here")
POLITE = "Thank you."
# Fillers use no word of a form, an opener, a closer or an answer, so that a filler only lowers conciseness.
FILLERS = (
    "I am glad to help you.",
    "Let me think about your question first.",
    "I hope you like what I wrote.",
    "You can ask me for more any time.",
    "What a great question to ask me.",
    "I will do what I can for you.",
)


def _words(*texts: str) -> frozenset[str]:
    """Lower-case words of texts, without the punctuation marks around them.

    Words must be separated by spaces.
    """
    return frozenset(word.strip(".,!?{}").lower() for text in texts for word in text.split()) - {""}


_TONE_WORDS = tuple(word for words in TONES.values() for word in words)

# Groups of similar words. An error replaces a word by another one of the first group that holds it.
KINDS = (
    NAMES,
    CITIES,
    JOBS,
    TOPICS,
    _TONE_WORDS,
    ITEMS,
    tuple(PERSONAS.values()),
    tuple(SYMBOLS.values()),
    tuple(PLANETS.values()),
    tuple(AUTHORS.values()),
    NUMBERS,
)

# Words that can be an answer, by category. Naming more of them than requested lowers the content score.
CANDIDATES = {
    "writing": _words(*TOPICS, *_TONE_WORDS),
    "roleplay": _words(*PERSONAS.values(), *NAMES),
    "reasoning": _words(*NAMES, *ITEMS),
    "math": _words(*NUMBERS),
    "coding": _words(*ITEMS),
    "extraction": _words(*NAMES, *CITIES, *JOBS),
    "stem": _words(*SYMBOLS.values(), *PLANETS.values()),
    "humanities": _words(*CAPITALS.values(), *AUTHORS.values()),
}
FORM_WORDS = {category: tuple(_words(form) for form in forms) for category, forms in FORMS.items()}
TONE_WORDS = {tone: frozenset(words) for tone, words in TONES.items()}
KNOWN_WORDS = frozenset().union(
    *CANDIDATES.values(),
    *(words for forms in FORM_WORDS.values() for words in forms),
    _words(POLITE, *FILLERS, *OPENERS, *CLOSERS),
)
