"""Load the options from their sources: code or flags, the environment, the file, shared variables, defaults, in this order.

Shared variables are those that other servers read for the same purpose, such as `PORT` (`Option.shared_variable`).

`load` checks each value and records its source, so that messages can name the line, the variable or the flag.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ..config.settings import FILE_OPTIONS, FORMER, OPTIONS, Option, Settings, validate, without_master
from ..config.value_types import MAX_WORKERS, PATH
from ..errors import ConfigError
from . import env_files

_VARIABLE_PREFIX = "CLUSTER2_"
_FIXED_PLACES = ("pids", "logs")
"""Directories that stay where they were at the start: symbolic links in their paths are resolved once."""
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def _never() -> Config:
    raise AssertionError("this configuration was not loaded")


@dataclass(frozen=True, slots=True)
class Config:
    """The settings and their sources.

    Attributes:
        sources: the source of each option by dotted name: "default", "flag --workers", "CLUSTER2_WORKERS",
            "cluster2.toml:3", "code", "FORWARDED_ALLOW_IPS".
        warnings: settings that are probably mistakes, a line each.
        again: loads the options again from the sources as they are then; raises ConfigError as `load` does.
    """

    settings: Settings
    sources: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    again: Callable[[], Config] = field(default=_never, repr=False, compare=False)

    def explicit(self, name: str) -> bool:
        """Return whether the option of that dotted name was set, even if to its default."""
        return _is_explicit(name, self.sources[name])


def _is_explicit(name: str, source: str) -> bool:
    return source not in ("default", OPTIONS[name].shared_variable)


class _Given(NamedTuple):
    """A raw value with its source. The value with the highest rank counts.

    Ranks: 0 default, 1 shared variable, 2 file, 3 environment, 4 code or flag.
    """

    raw: object
    source: str
    rank: int


def _code(name: str) -> str:
    return "code"


def load(
    given: Mapping[str, Any] = _NOTHING,
    *,
    origin: Callable[[str], str] = _code,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
    file: Path | None = None,
    check: bool = True,
) -> Config:
    """Load the settings from all sources.

    Relative paths become absolute, so that a change of the working directory doesn't change their meaning. Paths of Unix sockets
    stay relative, since their length is limited (107 bytes).

    Args:
        given: values from code or flags, nested (`{"ecv": {"control": True}}`) or by dotted name, as texts or native values.
            None counts as not given.
        origin: returns the source, for messages, of a dotted name in `given`.
        environ: the environment to read instead of the process's.
        directory: the directory of the file, to which paths are relative, instead of the working directory.
        file: the file of options to read instead of `cluster2.toml`, or of `[tool.cluster2]` in `pyproject.toml`.
        check: check that the files that options name can be used now (`check_files`).

    Raises:
        ConfigError: an option is unknown, has a bad value, or contradicts another.
    """
    directory = working_directory() if directory is None else directory
    warnings: list[str] = []
    variables = os.environ if environ is None else environ
    found = _from_shared_variables(variables)
    found |= _from_file(directory, file, warnings)  # each source overrides the ones before it
    found |= _from_environment(variables, warnings)
    found |= _from_code(given, origin)
    _settle_addresses(found)
    complete = {name: found.get(name, _Given(option.default, "default", 0)) for name, option in OPTIONS.items()}
    values = {OPTIONS[name].field: _value(OPTIONS[name], each, directory) for name, each in complete.items()}
    settings = Settings(**values | {"workers": values["workers"] or min(_usable_cpus(), MAX_WORKERS)})
    sources = {name: each.source for name, each in complete.items()}
    validate(settings, sources)
    if check:
        check_files(settings, sources)
        if settings.env_file is not None:
            warnings += _options_in(Path(settings.env_file), variables)

    given_on_purpose = {name: source for name, source in sources.items() if _is_explicit(name, source)}
    if (idle := without_master(settings, given_on_purpose)) is not None:
        warnings.append(idle)

    def again() -> Config:
        return load(given, origin=origin, environ=environ, directory=directory, file=file, check=check)

    return Config(settings, MappingProxyType(sources), tuple(warnings), again)


def restart_warning(name: str, source: str) -> str:
    """Return the warning about an option that has a new value which a reload can't apply."""
    return f"{name} has changed ({source}): that takes effect only by a restart"


def working_directory() -> Path:
    """Return the working directory, by the name that the shell has for it (`PWD`) if that is a name of it.

    The name may contain a symbolic link, as `current` is in many deployments. The kernel knows only the directory that the link
    led to at the start. By the name, a reload finds the release that the link leads to then.
    """
    named = os.environ.get("PWD", "")
    try:
        if os.path.isabs(named) and ".." not in Path(named).parts and os.path.samefile(named, os.curdir):
            return Path(named)
    except OSError:
        pass  # PWD was inherited, and names no directory now
    return Path.cwd()


def lookup(
    name: str, given: object = None, *, environ: Mapping[str, str] | None = None, directory: Path | None = None
) -> Any:
    """Return the value of one option; errors in others don't matter. Commands find a master by `lookup("pids", flag)`.

    Args:
        given: the value from code or a flag, which counts first; None: there is none.

    Raises:
        ConfigError: the value is bad, or the file can't be parsed.
    """
    option = OPTIONS[name]
    directory = working_directory() if directory is None else directory
    environ = os.environ if environ is None else environ
    if given is not None:
        return _value(option, _Given(given, option.flag or "code", 4), directory)
    if option.variable is not None and option.variable in environ:
        return _value(option, _Given(environ[option.variable], option.variable, 3), directory)
    for key, each in _read_file(directory, None, []):
        if key == name:
            return _value(option, each, directory)
    return _value(option, _Given(option.default, "default", 0), directory)


def check_files(settings: Settings, sources: Mapping[str, str] = _NOTHING) -> None:
    """Check that the files that options name can be used, by using them.

    Args:
        sources: the sources of options by dotted name, for the message.

    Raises:
        ConfigError: a file can't be read, a certificate and its key don't match, or `chdir` is no directory.
    """

    def refused(name: str, reason: object) -> ConfigError:
        source = f" ({sources[name]})" if name in sources else ""
        return ConfigError(f"{name} = {getattr(settings, name)!r}{source}: {reason}")

    if not os.path.isdir(settings.chdir):
        raise refused("chdir", "there is no such directory")
    for name in FILE_OPTIONS:
        if (path := getattr(settings, name)) is not None:
            try:
                Path(path).open("rb").close()
            except OSError as error:
                raise refused(name, f"can't be read: {error.strerror}") from None
    if settings.env_file is not None:
        env_files.read(Path(settings.env_file))
    if settings.user is not None or settings.group is not None:
        from ..linux.privileges import ids

        ids(settings.user, settings.group)
    if settings.ssl_certfile is not None:
        _check_certificate(settings, refused)


def _options_in(path: Path, environ: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable of an environment file that looks like an option, since options aren't read there."""
    return [
        f"{path} sets {name}, but options aren't read from env_file: that is the environment of the app; "
        "set it in the environment of cluster2, in its file of options, or by a flag"
        for name, value in env_files.read(path).items()
        if name.startswith(_VARIABLE_PREFIX) and environ.get(name) != value
    ]


def _check_certificate(settings: Settings, refused: Callable[[str, object], ConfigError]) -> None:
    # Imported here, since the import takes milliseconds, which a cluster without TLS doesn't need to spend.
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate, key = settings.ssl_certfile, settings.ssl_keyfile
    assert certificate is not None
    try:
        # Without a password, OpenSSL would ask for one on the terminal. An empty one makes it fail instead.
        context.load_cert_chain(certificate, key, settings.ssl_keyfile_password or (lambda: ""))
    except (ssl.SSLError, ValueError) as error:
        reason = str(getattr(error, "reason", None) or error).replace("_", " ").lower()
        beside = f" with ssl_keyfile = {key!r}" if key else ", which must hold the key too, without ssl_keyfile"
        raise refused("ssl_certfile", f"can't be loaded{beside}: {reason}") from None
    if settings.ssl_ca_certs is not None:
        try:
            context.load_verify_locations(settings.ssl_ca_certs)
        except ssl.SSLError as error:
            raise refused("ssl_ca_certs", f"can't be loaded: {error.reason or 'no certificate in it'}") from None


def _usable_cpus() -> int:
    from ..linux.processes import usable_cpus

    return usable_cpus()


# Values and their errors


def _value(option: Option, given: _Given, directory: Path) -> Any:
    try:
        value = option.parse(given.raw) if given.rank else given.raw
    except ValueError as error:
        raw = "***" if option.secret else repr(given.raw)
        raise ConfigError(f"{option.name} = {raw} ({given.source}): {error}") from None
    return _absolute(option, directory, str(value)) if option.kind is PATH and value is not None else value


def _absolute(option: Option, directory: Path, value: str) -> str:
    """Return the absolute path that a relative one means."""
    joined = os.path.join(directory, value)
    if option.name in _FIXED_PLACES:
        return os.path.realpath(joined)
    # After a symbolic link, `..` is the parent of the link's target, which may change until a reload: leave it to the kernel.
    return joined if ".." in Path(value).parts and directory.resolve() != directory else os.path.abspath(joined)


def _settle_addresses(found: dict[str, _Given]) -> None:
    """Keep, among options that exclude each other, the one from the source of the highest rank. Equal ranks are an error.

    So a flag --port counts although a file has `bind`, and the other way round. An empty list names no address: it overrides the
    lists of lower ranks, and then counts as not set, so that `PORT` and sockets of systemd are used.
    """
    for name in ("apps", "bind"):
        if name in found and found[name].raw in ("", [], ()):
            del found[name]
    for whole, part in (("apps", "app"), ("apps", "bind"), ("apps", "port"), ("bind", "port"), ("bind", "host")):
        if whole not in found or part not in found:
            continue
        if found[whole].rank == found[part].rank:
            one, other = (f"{name} ({found[name].source})" for name in (part, whole))
            raise ConfigError(f"{one} and {other} are both set: leave one out")
        del found[min(whole, part, key=lambda name: found[name].rank)]


def _unknown(name: str) -> str:
    if (option := FORMER.get(name.replace("-", "_"))) is not None:
        return f"{name!r} is named {option.name!r} now"
    closest = _closest(name.replace("-", "_"), OPTIONS, 0.5)
    return f"unknown option {name!r}" + (f"; did you mean {closest[0]!r}?" if closest else "")


def _closest(name: str, known: Iterable[str], likeness: float) -> list[str]:
    import difflib  # takes milliseconds, which only a mistake costs

    return difflib.get_close_matches(name, list(known), 1, likeness)


# The sources


def _from_code(given: Mapping[str, Any], origin: Callable[[str], str]) -> dict[str, _Given]:
    found = {}
    for name, raw in flatten(given):
        if name not in OPTIONS:
            raise ConfigError(f"{_unknown(name)} ({origin(name)})")
        if raw is not None:
            found[name] = _Given(raw, origin(name), 4)
    return found


def _from_shared_variables(environ: Mapping[str, str]) -> dict[str, _Given]:
    found = {}
    for name, option in OPTIONS.items():
        raw = environ.get(option.shared_variable or "")
        if option.shared_variable and raw is not None and (raw or _means_something_empty(option)):
            found[name] = _Given(raw, option.shared_variable, 1)
    return found


def _means_something_empty(option: Option) -> bool:
    try:
        option.kind.parse("")
    except ValueError:
        return False
    return True


def _from_environment(environ: Mapping[str, str], warnings: list[str]) -> dict[str, _Given]:
    options = {option.variable: name for name, option in OPTIONS.items() if option.variable}
    found = {}
    for variable, raw in environ.items():
        if not variable.startswith(_VARIABLE_PREFIX):
            continue
        # Kubernetes sets CLUSTER2_PORT=tcp://… for a service named cluster2: that isn't our option.
        announced = variable == "CLUSTER2_PORT" and re.match("(tcp|udp|sctp)://", raw)
        if variable in options and not announced:
            found[options[variable]] = _Given(raw, variable, 3)
        elif (option := FORMER.get(variable.removeprefix(_VARIABLE_PREFIX).lower())) is not None:
            raise ConfigError(f"environment variable {variable} is named {option.variable} now")
        else:
            closest = [] if announced else _closest(variable, options, 0.8)
            hint = f"; did you mean {closest[0]}?" if closest else ""
            warnings.append(f"environment variable {variable} is no option of cluster2 and is ignored{hint}")
    return found


def _from_file(directory: Path, file: Path | None, warnings: list[str]) -> dict[str, _Given]:
    found = {}
    for name, given in _read_file(directory, file, warnings):
        if name not in OPTIONS:
            raise ConfigError(f"{given.source}: {_unknown(name)}")
        found[name] = given
    return found


def _read_file(directory: Path, file: Path | None, warnings: list[str]) -> Iterator[tuple[str, _Given]]:
    """Yield the dotted names and raw values of the file, unchecked."""
    own, shared = directory / "cluster2.toml", directory / "pyproject.toml"
    if file is not None:
        yield from _located(directory / file, str(file))
    elif os.path.exists(own):  # not Path.exists, which raises where the directory may not be searched
        if os.path.exists(shared) and _parse(shared):
            warnings.append("cluster2.toml is used; [tool.cluster2] in pyproject.toml is ignored")
        yield from _located(own, own.name)
    elif os.path.exists(shared):
        yield from _located(shared, shared.name)


def _parse(path: Path) -> Mapping[str, Any]:
    import tomllib

    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid TOML: {error}") from None
    table = document.get("tool", {}).get("cluster2", {}) if _shared(path) else document
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: tool.cluster2 must be a table, [tool.cluster2]")
    return table


def _shared(path: Path) -> bool:
    """Return whether the file belongs to other tools as well, so that ours is the table `tool.cluster2`."""
    return path.name == "pyproject.toml"


def _located(path: Path, shown: str) -> Iterator[tuple[str, _Given]]:
    table = _parse(path)
    text = path.read_text("utf-8") if table else ""
    for name, raw in flatten(table):
        line = line_of(text, f"tool.cluster2.{name}" if _shared(path) else name)
        yield name, _Given(raw, f"{shown}:{line}" if line else shown, 2)


def flatten(values: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted names and values of nested tables: `("ecv.control", True)` for `{"ecv": {"control": True}}`."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{within}{key}.")
        else:
            yield within + key, value


def line_of(text: str, name: str) -> int | None:
    """Return the line, from 1, on which a TOML text sets a dotted key or the inline table that has it; None: not found.

    It reads lines, not TOML. A text that looks like a key within a multi-line string can mislead it; then a message has a wrong
    line number.
    """
    found, nearest, table = None, 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([^]]+?)\s*]", line):
            table = _bare(header[1])
            key = table
        elif entry := re.match(r"\s*([\w.\s\"'-]+?)\s*=", line):
            key = f"{table}.{_bare(entry[1])}".removeprefix(".")
        else:
            continue
        if f"{name}.".startswith(f"{key}.") and len(key) > nearest:
            found, nearest = number, len(key)
    return found


def _bare(key: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in key.split("."))
