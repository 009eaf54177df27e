"""Every error llmd raises on purpose. The web and the command line translate them; nothing else is caught.

    LlmdError
    ├── ClientError              the request is at fault
    │   ├── BadRequest           400  malformed, or a field with a bad value
    │   ├── ContextExceeded      400  longer than the model's context
    │   ├── WrongTask            400  a chat for an embedding model, and the like
    │   ├── Unauthorized         401  no key, or an unknown one
    │   ├── Forbidden            403  a known one that may not do this
    │   ├── ModelNotFound        404  no such model or profile
    │   ├── RouteNotFound        404  not a route llmd serves
    │   ├── MethodNotAllowed     405  a route, asked in another way than it takes
    │   ├── RequestTimeout       408  its body did not come
    │   └── BodyTooLarge         413  over server.max_body
    ├── Overloaded               429  every place is taken, come back
    ├── NotAvailable             503  cannot be ready: memory, mode, give-up
    ├── Withdrawn                503  a person ended it
    ├── EngineFailed             502  the engine died or would not start
    │   ├── EngineDied           502  it broke off before its answer began; another may take the request
    │   │   └── EngineUnwilling  502  a peer that answered, but would not serve it
    │   └── EngineSilent         504  the engine let a time limit pass
    ├── LoopDetected             508  llmds that pass a request round
    ├── InternalError            500  a bug in llmd; its log has the traceback
    └── OperatorError            what a person at the command line can mend
        ├── ConfigError     409  llmd.toml or a profile is wrong
        ├── AlreadyRunning       a second daemon on one state directory
        ├── NoDaemon             nobody answers on the admin socket
        └── DaemonRefused   409  the daemon answered "no", with a reason

Class attributes: `status` is HTTP's, `code` and `type` are what OpenAI's clients read. `retry_after` is seconds, None
where trying again as it stands cannot help.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


class LlmdError(Exception):
    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class ClientError(LlmdError):
    status = 400
    code = "invalid_request"
    type = "invalid_request_error"


class BadRequest(ClientError):
    pass


class ContextExceeded(ClientError):
    code = "context_length_exceeded"


class WrongTask(ClientError):
    code = "wrong_task"


class Unauthorized(ClientError):
    status = 401
    code = "invalid_api_key"
    type = "authentication_error"


class Forbidden(ClientError):
    status = 403
    code = "forbidden"
    type = "permission_error"


class ModelNotFound(ClientError):
    status = 404
    code = "model_not_found"


class RouteNotFound(ClientError):
    status = 404
    code = "route_not_found"


class MethodNotAllowed(ClientError):
    status = 405
    code = "method_not_allowed"


class RequestTimeout(ClientError):
    status = 408
    code = "request_timeout"


class BodyTooLarge(ClientError):
    status = 413
    code = "body_too_large"


class Overloaded(LlmdError):
    status = 429
    code = "overloaded"


class NotAvailable(LlmdError):
    status = 503
    code = "model_not_available"


class Withdrawn(LlmdError):
    status = 503
    code = "cancelled"


class EngineFailed(LlmdError):
    """`log` is the engine's last lines, the only account of what went wrong inside it."""

    status = 502
    code = "engine_failed"

    def __init__(self, message: str, *, log: Sequence[str] = (), retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.log = tuple(log)


class EngineDied(EngineFailed):
    """Nothing of an answer has come, or gone to the client: the one failure after which a request is sent again."""


class EngineUnwilling(EngineDied):
    pass


class LoopDetected(LlmdError):
    status = 508
    code = "loop_detected"


class EngineSilent(EngineFailed):
    status = 504
    code = "engine_timeout"


class InternalError(LlmdError):
    pass


class OperatorError(LlmdError):
    code = "operator_error"


class AlreadyRunning(OperatorError):
    code = "already_running"


class NoDaemon(OperatorError):
    code = "no_daemon"


class DaemonRefused(OperatorError):
    status = 409
    code = "refused"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration. `key` leads to it inside the file, `line` counts from 1."""

    file: Path
    what: str
    instead: str
    key: tuple[str | int, ...] = ()
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else str(self.file)
        return f"{where}: {self.what}; {self.instead}"


class ConfigError(OperatorError):
    """All problems at once, so that a person mends a file in one go."""

    status = 409
    code = "bad_config"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))
