"""The call of `kvtier.v1.ReceiptOpeningService`: the salt of a request's digests, to who asked it.

Invariant: the salt follows from the names and the id that the call gives and from the worker's
secret; nothing else is looked at, so names that did not ask a request open nothing of it. Event
loop.
"""

from typing import Any

from kvtier.v1 import receipt_opening_pb2, receipt_opening_pb2_grpc
from worker.errors import InvalidRequestIdError
from worker.tenants import Caller, Tenants

__all__ = ["OPENING_SERVICE", "OpeningServicer"]

OPENING_SERVICE = receipt_opening_pb2.DESCRIPTOR.services_by_name["ReceiptOpeningService"].full_name

ID_CHARACTERS_MAX = 1024


class OpeningServicer(receipt_opening_pb2_grpc.ReceiptOpeningServiceServicer):
    """Opens receipts with the secret that `tenants` has."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

    async def OpenReceipt(
        self, request: receipt_opening_pb2.OpenReceiptRequest, context: Any
    ) -> receipt_opening_pb2.OpenReceiptResponse:
        if not 0 < len(request.request_id) <= ID_CHARACTERS_MAX:
            raise InvalidRequestIdError(
                f"request_id is empty or over {ID_CHARACTERS_MAX} characters; give that of the"
                " receipt's event"
            )
        caller = Caller(request.tenant_id, request.project_id, request.user_id)
        salt = self._tenants.opening(caller, request.request_id)
        return receipt_opening_pb2.OpenReceiptResponse(salt=salt)
