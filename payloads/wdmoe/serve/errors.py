"""What is wrong with a request, as the OpenAI API says it."""

from __future__ import annotations

from typing import Any, Dict, Optional

__all__ = ["ApiError", "bad_request"]


class ApiError(Exception):
    """A request that cannot be answered.

    Attributes:
        status: The HTTP status.
        message: What is wrong, for people.
        kind: The error's type, such as ``invalid_request_error``.
        param: The part of the request that is wrong; ``None`` where none is.
        code: A word for programs; ``None`` where there is none.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: Optional[str] = None,
        code: Optional[str] = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code

    def as_json(self) -> Dict[str, Any]:
        """Return the body of the answer."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def bad_request(param: Optional[str], message: str, code: Optional[str] = None) -> ApiError:
    """Return an error about one part of a request."""
    return ApiError(400, message if param is None else f"{param}: {message}", param=param, code=code)
