"""What makes a shell complete the command line of `cryohush`, made of its parser."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping

PROGRAM = "cryohush"


def bash(parser: argparse.ArgumentParser) -> str:
    """Return a script for bash; words that are no options are completed as files."""
    commands = _commands(parser)
    lines = [
        f"_{PROGRAM}() {{",
        "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words=",
        "    if (( COMP_CWORD == 1 )); then",
        f"        words='{' '.join([*commands, '--help', '--version'])}'",
        "    else",
        '        case "${COMP_WORDS[1]} $before" in',
    ]
    for command, one in commands.items():
        for action in _options(one):
            if action.choices:
                cases = "|".join(f"'{command} {flag}'" for flag in action.option_strings)
                lines.append(f"            {cases}) words='{_words(action)}' ;;")
    lines += ["        esac", '        if [[ -z $words ]]; then case "${COMP_WORDS[1]}" in']
    for command, one in commands.items():
        flags = [flag for action in _options(one) for flag in action.option_strings]
        words = [*_positional_words(one), *flags]
        lines.append(f"            {command}) words='{' '.join(words)}' ;;")
    lines += [
        "        esac; fi",
        "    fi",
        # files are completed where the list is empty
        '    COMPREPLY=($(compgen -W "$words" -- "$word"))',
        "}",
        f"complete -o bashdefault -o default -F _{PROGRAM} {PROGRAM}",
    ]
    return "\n".join(lines) + "\n"


def zsh(parser: argparse.ArgumentParser) -> str:
    """Return a function for zsh's `fpath`."""
    commands = _commands(parser)
    lines = [f"#compdef {PROGRAM}", "", f"_{PROGRAM}() {{", "    if (( CURRENT == 2 )); then"]
    lines.append("        local -a commands=(")
    lines += [f"            {_quoted(f'{name}:{text}')}" for name, text in _texts(parser).items()]
    lines += ["        )", "        _describe command commands", "        return", "    fi"]
    lines += [
        "    local command=${words[2]}",
        "    shift words",
        "    (( CURRENT-- ))",
        "    case $command in",
    ]
    for command, one in commands.items():
        lines.append(f"        {command}) _arguments \\")
        for action in _options(one):
            for flag in action.option_strings:
                # brackets and colons have a meaning of their own
                about = (action.help or "").replace("%%", "%").replace("[", "(").replace("]", ")")
                spec = f"*{flag}[{about.replace(':', ',')}]"
                if action.nargs != 0:
                    spec += f":{_metavar(action)}:{f'({_words(action)})' if action.choices else '_files'}"
                lines.append(f"            {_quoted(spec)} \\")
        words = _positional_words(one)
        lines.append(f"            '*:input:{'(' + ' '.join(words) + ')' if words else '_files'}' ;;")
    lines += ["    esac", "}", "", f'_{PROGRAM} "$@"']
    return "\n".join(lines) + "\n"


def fish(parser: argparse.ArgumentParser) -> str:
    """Return a script for fish."""
    lines = [
        f"complete -c {PROGRAM} -n __fish_use_subcommand -f -a {name} -d {_quoted(text)}"
        for name, text in _texts(parser).items()
    ]
    for command, one in _commands(parser).items():
        begin = f"complete -c {PROGRAM} -n '__fish_seen_subcommand_from {command}'"
        if words := _positional_words(one):
            lines.append(f"{begin} -f -a '{' '.join(words)}'")
        for action in _options(one):
            line = begin
            for flag in action.option_strings:
                line += f" -l {flag[2:]}" if flag.startswith("--") else f" -s {flag[1:]}"
            if action.choices:
                line += f" -x -a '{_words(action)}'"
            elif action.nargs != 0:
                line += " -r"
            lines.append(f"{line} -d {_quoted((action.help or '').replace('%%', '%'))}")
    return "\n".join(lines) + "\n"


SCRIPTS: Mapping[str, Callable[[argparse.ArgumentParser], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
"""By the name of the shell."""


def _subparsers(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    return next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return dict(_subparsers(parser).choices)


def _texts(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Return each command and what it does."""
    return {action.dest: action.help or "" for action in _subparsers(parser)._choices_actions}


def _options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    return (action for action in parser._actions if action.option_strings)


def _positional_words(parser: argparse.ArgumentParser) -> list[str]:
    """Return the words that stand for something where no option is."""
    return [
        str(word) for action in parser._actions if not action.option_strings for word in action.choices or ()
    ]


def _words(action: argparse.Action) -> str:
    return " ".join(map(str, action.choices or ()))


def _metavar(action: argparse.Action) -> str:
    return str(action.metavar or action.dest)


def _quoted(text: str) -> str:
    """Return a text in single quotes for a shell of Bourne's family, or for fish."""
    return "'" + text.replace("\\", "").replace("'", "’") + "'"
