"""How a command or a file reaches a host."""

import importlib
import sys
from types import ModuleType
from typing import Any


class _Unimported(ModuleType):
    """Stands for a module until something of it is asked for; it is imported then."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # that is asked for when a part of it is imported
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


# paramiko (and fabric) import it, and with it asyncio and more, for a line that few have in ~/.ssh/config ("Match
# exec"). That is a tenth of the time that the command takes where nothing has to change.
sys.modules.setdefault("invoke", _Unimported("invoke"))
