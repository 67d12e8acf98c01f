"""``medmambase-serve RUN``: a page of this computer on which images are dropped and predicted."""

import argparse
import sys
import webbrowser
from collections.abc import Sequence

from medmambase.commands import console, serve_flags
from medmambase.commands.guard import UsageError
from medmambase.serving.answers import Answers
from medmambase.serving.origin import is_loopback, own_names
from medmambase.training.interrupt import Terminated

MOMENT = 0.2  # seconds: on Windows nothing interrupts the wait for a thread


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 ended by Ctrl-C, 2 usage, 3 data, 4
    environment, 143 ended by the system."""
    options = serve_flags.parse(arguments)
    return console.guarded("medmambase-serve", lambda: _serve(options))


def _serve(options: argparse.Namespace) -> int:
    local = is_loopback(options.host)
    if not local and not options.allow_network:
        raise UsageError(
            f"--host {options.host} can be reached from other computers, and whoever reaches it can use the page; add "
            f"--allow-network if that is meant, or leave out --host"
        )
    try:
        from medmambase.serving import server
    except ModuleNotFoundError as error:
        raise UsageError(
            f'the page needs {error.name}, which is not installed: pip install "medmambase[serve]"'
        ) from error
    answers = Answers(options.run, console.device(options.device), options.at)
    names = None if local else own_names()
    try:
        listening = server.listen(options.host, options.port)
    except OSError as error:
        raise UsageError(
            f"--host {options.host} --port {options.port} cannot be listened on ({error.strerror or error}); give "
            f"another --port, or --port 0 for any that is free"
        ) from error
    answers.warm_up()
    address = server.address_of(listening)
    print(f"{answers.name} is served on {address} until Ctrl-C")
    if not local:
        print(
            "whoever reaches this address can use the page; what is sent is not encrypted: use it in a network that "
            "you trust"
        )
    sys.stdout.flush()
    try:
        with server.served(answers, options.max_mb, names, listening) as served:
            if options.open:
                webbrowser.open(address)
            while served.thread.is_alive():
                served.thread.join(MOMENT)
    except KeyboardInterrupt as error:
        if isinstance(error, Terminated):
            raise
    print("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
