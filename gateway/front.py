"""Who is let in, by either face. Event loop; keys are the file's, counts are `Admission`'s."""

import time
from collections.abc import Callable

from gateway.admission import Admission
from gateway.errors import KeyRefusedError, ScopeTooWideError
from gateway.identity import Caller, bearer
from gateway.key_file import KeyReader
from gateway.keys import ApiKey
from kvtier.v1 import inference_pb2 as pb

__all__ = ["Front", "put_caller"]


class Front:
    """The keys, and the places of those that they let in."""

    def __init__(
        self, keys: KeyReader, admission: Admission, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys = keys
        self._clock = clock
        self.admission = admission

    def key(self, authorization: str) -> ApiKey:
        """Raises KeyMissingError, KeyRefusedError, KeysUnavailableError."""
        text = bearer(authorization)
        key = self._keys.ring().find(text, self._clock())
        if key is None:
            raise KeyRefusedError("the API key is not valid; check it, or have another made")
        return key


def put_caller(request: pb.GenerateRequest, caller: Caller, service_class: str) -> None:
    """Says to the worker who asks, whatever the request said. A user narrows the cache's scope; a
    key of one user keeps within it.

    Raises ScopeTooWideError.
    """
    own = (pb.CACHE_SCOPE_UNSPECIFIED, pb.CACHE_SCOPE_USER)
    if caller.bound and request.cache_scope not in own:
        raise ScopeTooWideError(
            "this key is one user's and shares blocks within that user's scope only; leave"
            " cache_scope out",
            field="cache_scope",
        )
    request.tenant_id = caller.organisation
    request.project_id = caller.project
    request.user_id = caller.user
    request.key_id = caller.key_id
    request.service_class = service_class
    if caller.user and not request.cache_scope:
        request.cache_scope = pb.CACHE_SCOPE_USER
