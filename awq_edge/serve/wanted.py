"""What a client wants, whichever protocol it speaks. Owns the one type that all of them become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from awq_edge.generation import GenerationConfig
from awq_edge.serve.picture_parts import SentPicture, pictures_in

Prompt = Union[str, Sequence[int]]


@dataclass(frozen=True)
class Wanted:
    """A request for one or several answers.

    Attributes:
        model: As the client calls it.
        messages: Of a conversation, in OpenAI's form with contents as of ``messages.py``; or None.
        prompts: Texts or ids to continue, if there are no messages.
        images: Pictures of the one prompt.
        config: How to draw; its seed may be None.
        choices: Answers to each prompt, with the seeds after one another.
        logprobs: How many likeliest tokens to give with each; None gives none.
        tools: Functions that the model may call, in OpenAI's form.
        tool_choice: "auto", "none", "required", or a function's name behind a colon.
        schema: What the answer must be valid by: a JSON schema, True for any JSON object, or None.
        variables: What the chat template is told besides.
        stream: Whether to answer piece by piece.
        usage_chunk: Whether a stream ends with its tokens, in OpenAI's interfaces.
        echo: Whether a text begins with its prompt.
        suffix: What follows the text in the end: it fills the gap before.
    """

    model: str
    config: GenerationConfig
    messages: Sequence[Mapping[str, Any]] | None = None
    prompts: Sequence[Prompt] = ()
    images: Sequence[SentPicture] = ()
    choices: int = 1
    logprobs: int | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str = "auto"
    schema: Any = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = False
    usage_chunk: bool = False
    echo: bool = False
    suffix: str = ""

    @property
    def pictures(self) -> list[SentPicture]:
        """All pictures of the request."""
        return [*self.images, *pictures_in(self.messages or ())]
