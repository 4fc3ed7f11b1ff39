"""The form that a request's answers have: what may be drawn, and how the text is read.

Owns the choice of constraint and reader. Refuses prompts: ``chat_prompts.py`` writes them.
"""

from __future__ import annotations

from awq_edge.model import Model
from awq_edge.reasoning import ReasoningSplitter, reasoning_markers
from awq_edge.serve.answers import TextReader
from awq_edge.serve.chat_prompts import template_of
from awq_edge.serve.chat_reader import ChatReader
from awq_edge.serve.faults import RequestError
from awq_edge.serve.grammar import GrammarConstraint, schema_grammar, token_table, tool_grammar
from awq_edge.serve.tool_formats import HERMES, ToolFormat, tool_format
from awq_edge.serve.tool_reader import ToolReader
from awq_edge.serve.wanted import Wanted


class AnswerForm:
    """What all answers of a request have in common.

    Attributes:
        special_tokens: Whether the text must spell them out, because a marker is one.
    """

    def __init__(self, model: Model, wanted: Wanted) -> None:
        """Chooses.

        Raises:
            RequestError: A schema cannot be enforced, or a function is not among the tools.
        """
        self._model = model
        self._chat = wanted.messages is not None
        self._format: ToolFormat | None = None
        self._markers: tuple[tuple[str, str], ...] = ()
        self._grammar: str | None = None
        self.special_tokens = False
        if self._chat:
            self._read_template(wanted)
        if wanted.schema is not None:
            if self._grammar is not None:
                raise RequestError(
                    "An answer cannot have a form and be a call: use response_format or a "
                    "tool_choice that asks for a call.",
                    param="response_format",
                )
            self._grammar = schema_grammar(wanted.schema)
            # Nothing but the form comes.
            self._format, self._markers, self.special_tokens = None, (), False

    def constraint(self) -> GrammarConstraint | None:
        """A new one for each text."""
        if self._grammar is None:
            return None
        return GrammarConstraint(token_table(self._model), self._grammar)

    def reader(self, prompt: str) -> TextReader:
        """A new one for each text.

        Args:
            prompt: What the text follows: it may have begun the reasoning.
        """
        if not self._chat:
            return TextReader()
        splitter = ReasoningSplitter(self._markers, prompt) if self._markers else None
        return ChatReader(splitter, None if self._format is None else ToolReader(self._format))

    def _read_template(self, wanted: Wanted) -> None:
        tools = list(wanted.tools) if wanted.tool_choice != "none" else []
        template = template_of(self._model, tools=bool(tools))
        self._markers = reasoning_markers(template)
        if tools:
            self._format = tool_format(template) or HERMES
            if wanted.tool_choice.startswith(":"):
                name = wanted.tool_choice[1:]
                tools = [tool for tool in tools if tool["function"]["name"] == name]
                if not tools:
                    raise RequestError(
                        f"tool_choice names {name!r:.80}, which is not among the tools.",
                        param="tool_choice",
                    )
            if wanted.tool_choice != "auto":
                self._grammar = tool_grammar(self._format, tools, token_table(self._model))
                self._markers = ()
        elif wanted.tool_choice not in ("auto", "none"):
            raise RequestError("tool_choice asks for a call without tools.", param="tool_choice")
        markers = [marker for pair in self._markers for marker in pair]
        if self._format is not None:
            markers += [self._format.begin, self._format.end]
        self.special_tokens = any(self._is_hidden(marker) for marker in markers if marker)

    def _is_hidden(self, marker: str) -> bool:
        """Whether a marker is a special token, which texts do not show."""
        tokenizer = self._model.tokenizer
        ids = tokenizer.encode(marker, add_bos=False)
        return len(ids) == 1 and not tokenizer.decode(ids)
