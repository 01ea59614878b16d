"""Scripts that complete the commands of `sparkcf` and their options in a shell."""

from __future__ import annotations

from typing import Any

import typer

from sparkcf.cli.app import app

BASH = """_sparkcf() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" command="" each
    for each in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$each" in {names}) command="$each"; break ;; esac
    done
    case "$command" in
{cases}
        *) COMPREPLY=($(compgen -W "{commands} --lake --help" -- "$word")) ;;
    esac
    [[ ${{#COMPREPLY[@]}} -eq 0 && $word != -* ]] && COMPREPLY=($(compgen -f -- "$word"))
}}
complete -F _sparkcf sparkcf"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def script(shell: str) -> str:
    """The script for bash or zsh, which takes that of bash."""
    group = typer.main.get_command(app)
    options = {name: _words(command) for name, command in sorted(getattr(group, "commands", {}).items())}
    cases = "\n".join(
        f'        {name}) COMPREPLY=($(compgen -W "{" ".join([*own, "--help"])}" -- "$word")) ;;'
        for name, own in options.items()
    )
    bash = BASH.format(names="|".join(options), commands=" ".join(options), cases=cases)
    return (ZSH if shell == "zsh" else "") + bash


def _words(command: Any) -> list[str]:
    """A command's options; of a group of commands their names and options."""
    inside = getattr(command, "commands", {})
    own = {option for parameter in command.params for option in parameter.opts if option[:2] == "--"}
    return [*sorted(inside), *sorted(own.union(*map(_words, inside.values())))]
