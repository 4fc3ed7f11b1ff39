"""What a person is told of a text's guesses: how many came true, and whether it was worth it."""

from awq_edge.generation import Generation


def guesses_text(generation: Generation) -> str:
    """The end of a line about a text; empty where nothing guesses."""
    guesses = generation.guesses
    if guesses is None:
        return ""
    told = f"; {guesses.right} of {guesses.guessed} guessed tokens were right"
    return f"{told}, guessing rests because it would lose" if guesses.resting else told
