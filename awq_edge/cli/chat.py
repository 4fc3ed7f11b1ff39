"""``awq-edge chat``: a conversation in the terminal. Only answers go to standard output.

On a terminal they are Markdown, behind their reasoning; elsewhere they are text as it came, and
reasoning goes to standard error.
"""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional, Union

import typer

from awq_edge.chat import prepare, templates
from awq_edge.cli._groups import Guessing, Running, Sampling, grouped
from awq_edge.cli._guesses_text import guesses_text
from awq_edge.cli._options import Context, Kv, ModelFile, Quiet
from awq_edge.cli._output import Output, is_live_terminal
from awq_edge.cli._pictures import keep_pictures
from awq_edge.cli._prompt_text import read_prompt_file
from awq_edge.cli._saved_conversation import ShownPictures
from awq_edge.conversation import Conversation
from awq_edge.errors import (
    AwqEdgeError,
    InvalidArgumentError,
    UnsupportedError,
)
from awq_edge.reasoning import Piece

if TYPE_CHECKING:
    from awq_edge.cli._markdown import AnswerOnTerminal
    from awq_edge.model import Model
    from awq_edge.vision.reader import PreparedPicture

_HELP = """\
/system TEXT  what the model is told first; alone: shows it
/undo         takes the last exchange back      /retry      another answer
/save FILE    keeps the conversation            /load FILE  goes on with one
/image PATH   shows a picture with the next question
/stats        speed of the last answer, room in the context
/reset        begins anew                       /help       this
/exit         leaves, as Ctrl-D does; Ctrl-C stops an answer
//TEXT        says /TEXT to the model"""


@grouped
def chat(
    file: ModelFile,
    system: Annotated[
        str, typer.Option("--system", help="What the model is told before the first turn.")
    ] = "",
    prompt_file: Annotated[
        Optional[Path],
        typer.Option("--prompt-file", metavar="FILE", help="Say this first."),
    ] = None,
    max_tokens: Annotated[
        Optional[int],
        typer.Option("--max-tokens", "-n", min=1, help="Of an answer; by default until it ends."),
    ] = None,
    when_full: Annotated[
        str,
        typer.Option(
            "--when-full",
            metavar="drop|stop",
            help="A full context drops the oldest turns, or ends the conversation.",
        ),
    ] = "drop",
    *,
    plain: Annotated[
        bool, typer.Option("--plain", help="Answers as the model writes them, not as Markdown.")
    ] = False,
    sampling: Sampling,
    guessing: Guessing,
    running: Running,
    context: Context = None,
    kv: Kv = "fp16",
    quiet: Quiet = False,
) -> None:
    """Talk to a packed chat model; /help inside tells the commands."""
    if when_full not in ("drop", "stop"):
        raise InvalidArgumentError(f"--when-full {when_full!r} is none of drop, stop.")
    output = Output(quiet=quiet)
    first = None if prompt_file is None else read_prompt_file(prompt_file)
    prepare()  # loads beside the model
    with running.open(file, context, kv, guessing) as model:
        keep_pictures(model)
        if not templates(model.metadata):
            raise UnsupportedError(
                f"{file} holds a model without a chat template: continue texts with 'awq-edge run'."
            )
        conversation = Conversation(
            model,
            system=system,
            config=sampling.config(max_tokens),
            drop_oldest=when_full == "drop",
        )
        markdown = not plain and is_live_terminal(sys.stdout)
        _Dialogue(conversation, output, model.name, markdown=markdown).run(first)


class _Dialogue:
    """The loop between a person, or a pipe, and the conversation."""

    def __init__(
        self, conversation: Conversation, output: Output, name: str, *, markdown: bool
    ) -> None:
        self._conversation = conversation
        self._output = output
        self._name = name
        self._markdown = markdown
        self._told_of_dropping = False
        self._pictures: list[PreparedPicture] = []  # for the next question
        self._shown = ShownPictures(conversation)
        self._person = sys.stdin.isatty()

    def run(self, first: Optional[str]) -> None:
        if self._person:
            self._output.status(f"{self._name}. /help tells the commands, Ctrl-D leaves.")
        if first is not None:
            self._answer(self._conversation.ask(first))
        for line in self._lines():
            text = line.strip()
            if not text:
                continue
            try:
                if text.startswith("/") and not text.startswith("//"):
                    if not self._command(text):
                        return
                else:
                    pictures, self._pictures = self._pictures, []
                    self._answer(self._conversation.ask(text.removeprefix("/"), pictures))
            except AwqEdgeError as error:
                # In a pipe nobody could answer: the error ends the command.
                if not self._person:
                    raise
                self._output.status(f"{error}")

    def _lines(self) -> Iterator[str]:
        """What is typed, with editing and history where the system has them; or a pipe's lines."""
        if not self._person:
            try:
                yield from sys.stdin
            except UnicodeDecodeError as error:
                raise InvalidArgumentError(
                    "Standard input is no text in this system's encoding: convert it to UTF-8, for "
                    "example with iconv."
                ) from error
            return
        asks = sys.stdout.isatty()  # otherwise the answers alone go there
        if asks:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (input() then edits lines and keeps a history)
        while True:
            try:
                if asks:
                    yield input("> ")
                else:
                    sys.stderr.write("> ")
                    sys.stderr.flush()
                    line = sys.stdin.readline()
                    if not line:
                        raise EOFError
                    yield line
            except EOFError:
                (sys.stdout if asks else sys.stderr).write("\n")
                return
            except KeyboardInterrupt:
                self._output.status("\nCtrl-D or /exit leaves.")
            except UnicodeDecodeError:
                self._output.status("That is no text in this terminal's encoding.")

    def _answer(self, pieces: Iterator[Piece]) -> None:
        shown = _shown(self._output, markdown=self._markdown)
        begun = stopped = False
        try:
            for piece in pieces:
                begun = True
                shown.add(piece)
        except KeyboardInterrupt:
            if not self._person:
                raise
            stopped = True
            pieces.close()  # type: ignore[attr-defined]  # a generator
        finally:
            shown.finish()
        if stopped:
            self._output.status(
                "stopped; /retry asks again" if begun else "stopped before the first word"
            )
        if self._conversation.dropped and not self._told_of_dropping:
            self._told_of_dropping = True
            self._output.status("The context is full: the oldest turns are left out from now on.")
        last = self._conversation.last
        if not stopped and last is not None and last.stop_reason == "context":
            self._output.status(
                f"The answer ends here, for the context of {last.session.context_length} tokens is "
                "full (--context)."
            )

    def _command(self, text: str) -> bool:
        """Does what a line that begins with a slash says; False ends the dialogue."""
        word, _, rest = text.partition(" ")
        rest = rest.strip()
        talk = self._conversation
        if word in ("/exit", "/quit", "/bye"):
            return False
        if word == "/help":
            self._output.status(_HELP)
        elif word == "/system":
            talk.system = rest or talk.system
            self._output.status(f"system: {talk.system or 'nothing'}")
        elif word == "/reset":
            talk.reset()
            self._pictures.clear()
            self._shown.forget()
            self._told_of_dropping = False
            self._output.status("A new conversation.")
        elif word == "/undo":
            said = talk.undo()
            self._output.status("There is nothing to take back." if said is None else f"- {said}")
        elif word == "/retry":
            if talk.turns:
                self._answer(talk.retry())
            else:
                self._output.status("There is nothing to ask again.")
        elif word == "/image":
            self._show(rest)
        elif word in ("/save", "/load"):
            if not rest:
                raise InvalidArgumentError(f"{word} needs the name of a file.")
            self._keep(word, Path(rest).expanduser())
        elif word == "/stats":
            self._output.status(self._stats())
        else:
            raise InvalidArgumentError(f"There is no command {word}; /help tells those there are.")
        return True

    def _show(self, path: str) -> None:
        if not path:
            raise InvalidArgumentError("/image needs the name of a file.")
        picture = self._shown.show(Path(path).expanduser())
        self._pictures.append(picture)
        height, width = picture.tiled.size
        shown = f"{path}, {width}x{height}: shown with the next question."
        self._output.status(" ".join((shown, *picture.notices)))

    def _keep(self, word: str, path: Path) -> None:
        if word == "/save":
            self._shown.save(path)
            self._output.status(f"{len(self._conversation.turns)} messages in {path}.")
        else:
            count = self._shown.load(path)
            self._pictures.clear()
            self._output.status(f"{count} messages from {path}.")

    def _stats(self) -> str:
        last = self._conversation.last
        if last is None:
            return "Nothing was said yet."
        session = last.session
        read = len(last.prompt_tokens) - last.reused_tokens
        rate = last.decode_steps / last.decode_seconds if last.decode_seconds > 0 else 0.0
        return (
            f"{len(last.tokens)} tokens at {rate:.1f} tokens/s after {read} new tokens of the "
            f"prompt ({last.reused_tokens} were there), {session.position} of "
            f"{session.context_length} tokens in the context; {session.kernels}"
            f"{guesses_text(last)}"
        ) + (f"; {_tiles(session.model)}" if session.model.sees_pictures else "")


def _tiles(model: "Model") -> str:
    count = model.pictures.encodings
    return f"the tower has read {count} tile{'' if count == 1 else 's'} of pictures"


def _shown(output: Output, *, markdown: bool) -> "Union[AnswerOnTerminal, _PlainAnswer]":
    """What an answer is shown by."""
    if not markdown:
        return _PlainAnswer(output)
    from awq_edge.cli._markdown import AnswerOnTerminal

    return AnswerOnTerminal()


class _PlainAnswer:
    """An answer as it came on standard output, its reasoning on standard error."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._reasoning = False

    def add(self, piece: Piece) -> None:
        if piece.is_reasoning:
            self._reasoning = True
            self._output.status_piece(piece.text)
        else:
            self._end_reasoning()
            self._output.stream(piece.text)

    def finish(self) -> None:
        self._end_reasoning()
        self._output.stream("\n")

    def _end_reasoning(self) -> None:
        if self._reasoning:
            self._reasoning = False
            self._output.status("")
