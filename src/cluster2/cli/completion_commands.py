"""`completion`: the script by which a shell completes commands, flags and values."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")
_VARIABLE = "_CLUSTER2_COMPLETE"
"""The variable by which the script asks `cluster2` for completions; click defines the name."""


_HELP = """Print the completion script of a shell.

\b
bash  eval "$(cluster2 completion bash)"   in ~/.bashrc
zsh   eval "$(cluster2 completion zsh)"    in ~/.zshrc
fish  cluster2 completion fish > ~/.config/fish/completions/cluster2.fish
"""


@click.command(help=_HELP)
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> int:
    """Print the script."""
    made = get_completion_class(shell)
    assert made is not None  # click has the three of _SHELLS
    click.echo(made(click.get_current_context().find_root().command, {}, "cluster2", _VARIABLE).source())
    return 0
