"""``langwright chat``: a conversation in the terminal."""

import sys
from contextlib import suppress

from pydantic import Field
from pydantic_settings import CliPositionalArg

from langwright.apps.chat import ChatSession
from langwright.cli.command import Command, settings
from langwright.core.errors import UserError
from langwright.infer.lm import load
from langwright.infer.sampling import SamplingConfig

HELP = """/reset   forget the conversation
/system TEXT   set the system prompt and begin again
/history   show the turns so far
/exit   leave (also Ctrl-D); Ctrl-C stops an answer
End a line with \\ to go on in the next."""


class _Session(Command):
    ref: CliPositionalArg[str] = "smollm2-135m-instruct"
    """The model: a folder, a .gguf file, a catalogue name or a hub id."""
    system: str | None = None
    """System prompt; without it the model's template decides."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    dtype: str | None = None
    """float32, bfloat16 or float16; default: float32 on a CPU, else as stored."""


class Chat(SamplingConfig, _Session):
    """Talk to a model: answers stream, the conversation is kept, /help shows the commands."""

    model_config = settings("chat")
    verbatim = frozenset({"--stop"})

    temperature: float = Field(default=0.7, ge=0, le=100)
    """Logits are divided by this; 0 is greedy."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Keep the fewest tokens that hold this much probability; 1 keeps all."""
    max_new_tokens: int = Field(default=512, ge=1, le=1 << 20)
    """Longest answer, in tokens."""


def run(argv: list[str]) -> int:
    """The verb."""
    command = Chat.read(argv)
    sampling = {name: getattr(command, name) for name in SamplingConfig.model_fields}
    model = load(command.ref, device=command.device, dtype=command.dtype)
    session = ChatSession(model, system=command.system, **sampling)
    watched = sys.stdin.isatty()
    if watched:
        with suppress(ImportError):
            import readline  # noqa: F401 - line editing and history for input()
        print(f"{command.ref}, context {model.config.max_positions:,} tokens. /help shows the commands.")
    while (text := read_turn("> " if watched else "")) is not None:
        if not text.strip():
            continue
        if text.startswith("/"):
            if not obey(session, text):
                break
            continue
        answer(session, text)
    return 0


def read_turn(prompt: str) -> str | None:
    """One message, perhaps over several lines; None at the end of input."""
    lines = []
    try:
        while True:
            line = input(prompt if not lines else "  " * bool(prompt))
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])
    except EOFError:
        return "\n".join(lines) if lines else None


def answer(session: ChatSession, text: str) -> None:
    """Stream one answer; Ctrl-C ends it early and keeps what was said."""
    before = session.forgotten
    try:
        pieces = session.say(text)
        try:
            for piece in pieces:
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pieces.close()
            print(" [stopped]", end="")
        print()
    except UserError as error:
        print(f"({error})")
    if session.forgotten > before:
        print(f"(the context is full: the oldest {session.forgotten - before} turns were forgotten)")
    if session.last is not None and session.last.finish_reason == "length":
        print("(cut at the token limit; --max-new-tokens raises it)")


def obey(session: ChatSession, text: str) -> bool:
    """Carry out a slash command; False means leave."""
    name, _, rest = text.strip().partition(" ")
    match name:
        case "/exit" | "/quit":
            return False
        case "/reset":
            session.reset()
            print("(forgotten)")
        case "/system":
            session.reset()
            session.system = rest or None
            print("(system prompt set; the conversation begins again)")
        case "/history":
            for message in session.messages:
                print(f"{message['role']}: {message['content']}")
        case "/help":
            print(HELP)
        case _:
            print(f"({name} is not a command; /help shows them)")
    return True
