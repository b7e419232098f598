"""Expert selections of the user's own: a class in a Python file.

In a campaign the kind is ``FILE:CLASS``; its settings are the class's keyword arguments. The class is what
:class:`payloads.wdmoe.gating.Selector` says: ``select(view)`` and, if it learns from measured times, ``observe(...)``.
A class attribute ``follows_links = False`` says that it does not look at ``view.costs``. docs/own-policies.md has an
example.

The file is code of the campaign's author. It is run as it is, at the base station and in the simulator, so that it is
staged under its digest and refused where it is not the file that the campaign was checked with.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Tuple

__all__ = [
    "UserPolicy",
    "UserPolicyError",
    "check_user_policy",
    "fault_of",
    "is_user_kind",
    "make_user_selector",
    "read_user_policy",
    "split_kind",
]

#: Settings that are ours and not the class's.
_OWN = ("kind", "sha256")


class UserPolicyError(ValueError):
    """A policy's file, class or settings cannot be used; the message is one clear line."""


class UserPolicy(NamedTuple):
    """A policy's file as it was read.

    Attributes:
        path: The file.
        name: The class in it.
        sha256: The file's digest.
        source: Its text.
    """

    path: Path
    name: str
    sha256: str
    source: str


def is_user_kind(kind: Any) -> bool:
    """Return whether a kind names a class in a file."""
    return isinstance(kind, str) and ":" in kind


def split_kind(kind: str) -> Tuple[Path, str]:
    """Return the file and the class of a kind ``FILE:CLASS``.

    Raises:
        UserPolicyError: It is none.
    """
    file, _, name = kind.rpartition(":")
    if not file or not name.isidentifier():
        raise UserPolicyError(f"FILE:CLASS was expected, not {kind!r}")
    return Path(file).expanduser(), name


def read_user_policy(path: Path, name: str) -> UserPolicy:
    """Read a policy's file and find its class, without running anything of it.

    Raises:
        UserPolicyError: It cannot be read, is no Python, or has no such class.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserPolicyError(f"{path} cannot be read: {error.strerror}") from error
    try:
        source = data.decode()
        tree = ast.parse(source, str(path))
    except SyntaxError as error:
        raise UserPolicyError(f"{path}:{error.lineno}: {error.msg}") from error
    except ValueError as error:
        raise UserPolicyError(f"{path}: Python in UTF-8 was expected: {error}") from error
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    if name not in classes:
        there = f"there are: {', '.join(classes)}" if classes else "it has no class at all"
        raise UserPolicyError(f"{path} has no class {name}; {there}")
    return UserPolicy(path, name, hashlib.sha256(data).hexdigest(), source)


def make_user_selector(settings: Mapping[str, Any]) -> Any:
    """Make a selector of the user's own.

    Args:
        settings: ``kind`` (``FILE:CLASS``), the class's keyword arguments, and, where only one very file will do,
            its ``sha256``.

    Raises:
        UserPolicyError: The file is another one, or the class cannot be made with these settings.
    """
    policy = read_user_policy(*split_kind(settings["kind"]))
    wanted = settings.get("sha256")
    if wanted is not None and wanted != policy.sha256:
        raise UserPolicyError(f"{policy.path} is not the file that the campaign was checked with")
    made = _class_of(policy)
    arguments = {name: value for name, value in settings.items() if name not in _OWN}
    try:
        inspect.signature(made).bind(**arguments)
    except TypeError as error:
        raise UserPolicyError(f"{policy.name}: {error}; it takes {inspect.signature(made)}") from error
    try:
        selector = made(**arguments)
    except (Exception, SystemExit) as error:  # whatever the user's code says of its settings
        raise UserPolicyError(f"{policy.name}: {type(error).__name__}: {error}") from error
    return selector


def check_user_policy(settings: Mapping[str, Any]) -> List[str]:
    """Return what is wrong with the settings of a policy of the user's own, one line each, by making it."""
    try:
        make_user_selector(settings)
    except UserPolicyError as error:
        return [f"kind: {error}"]
    return []


def follows_links(settings: Mapping[str, Any]) -> bool:
    """Return whether a policy of the user's own looks at what sending takes; yes, unless its class says no.

    Raises:
        UserPolicyError: The class cannot be loaded.
    """
    return bool(getattr(_class_of(read_user_policy(*split_kind(settings["kind"]))), "follows_links", True))


_LOADED: Dict[Tuple[str, str], Any] = {}


def _class_of(policy: UserPolicy) -> Any:
    """Run the policy's file, once for each of its contents, and return the class."""
    key = (policy.sha256, str(policy.path))
    module = _LOADED.get(key)
    if module is None:
        module = _run(policy)
        _LOADED[key] = module
    made = getattr(module, policy.name)
    if not callable(getattr(made, "select", None)):
        raise UserPolicyError(f"{policy.path}: the class {policy.name} has no method select(view)")
    return made


def _run(policy: UserPolicy) -> Any:
    name = f"testbed_policy_{policy.sha256[:16]}"
    spec = spec_from_loader(name, None, origin=str(policy.path))
    assert spec is not None
    module = module_from_spec(spec)
    module.__file__ = str(policy.path)
    sys.modules[name] = module  # dataclasses of the file look for their module there
    try:
        exec(compile(policy.source, str(policy.path), "exec"), module.__dict__)  # noqa: S102  (the user's own code is the purpose)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, (Exception, SystemExit)):
            raise
        raise fault_of(error, policy.path) from error
    return module


def fault_of(error: BaseException, path: Path) -> UserPolicyError:
    """Return what a failure of the user's code is said as: the last line of their file that it went through, and it."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f"{path}:{line}" if line else str(path)
    return UserPolicyError(f"{where}: {type(error).__name__}: {error}")
