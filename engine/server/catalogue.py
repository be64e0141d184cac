"""``recserve.v1.Catalogue``: items that come and go between two bundles."""

from typing import Any

from google.protobuf.json_format import MessageToDict

from recserve.engine.models.router import Router
from recserve.engine.server.call import Call, answer_later
from recserve.engine.server.methods import Method
from recserve.engine.state.distant import AnyState
from recserve.engine.state.items import ItemChange
from recserve.errors import InvalidRequest
from recserve.proto import catalogue_pb2 as pb

PREFIX = "/" + pb.DESCRIPTOR.services_by_name["Catalogue"].full_name + "/"
SCOPE = "items:write"
MAX_ITEMS = 1000


class CatalogueService:
    """The rows of the service. Nothing waits here: the log's thread keeps the change and answers."""

    def __init__(self, state: AnyState, router: Router) -> None:
        self._state, self._router = state, router

    def methods(self) -> list[Method]:
        """Returns the rows of the service."""
        rows: tuple[tuple[str, Any, Any, str], ...] = (
            ("UpsertItems", pb.UpsertItemsRequest, self._upsert, "/v1/upsert-items"),
            ("RemoveItems", pb.RemoveItemsRequest, self._remove, "/v1/remove-items"),
        )
        return [
            Method(
                path=PREFIX + name,
                request=request,
                response=pb.ItemsChanged,
                handler=handler,
                scope=SCOPE,
                http=http,
            )
            for name, request, handler, http in rows
        ]

    def _upsert(self, message: pb.UpsertItemsRequest, call: Call) -> None:
        with self._router.registry.lease(message.model) as lease:
            manifest = lease.engine().manifest
        for item in message.items:
            if len(item.vector) not in (0, manifest.embedding_size):
                raise InvalidRequest(
                    f"vector of {item.item_id[:64]!r}",
                    found=f"{len(item.vector)} long",
                    expected=f"{manifest.embedding_size} long",
                )
        self._change(call, [_change(item, manifest.bundle_version) for item in message.items])

    def _remove(self, message: pb.RemoveItemsRequest, call: Call) -> None:
        self._change(call, [ItemChange(item_id=id_, is_served=False) for id_ in message.item_ids])

    def _change(self, call: Call, changes: list[ItemChange]) -> None:
        if len(changes) > MAX_ITEMS:
            raise InvalidRequest("items", found=f"{len(changes)} long", expected=f"at most {MAX_ITEMS}")
        answer_later(call, self._state.change_items(changes), lambda done: pb.ItemsChanged())


def _change(item: pb.NewItem, bundle_version: str) -> ItemChange:
    try:
        attributes = MessageToDict(item.attributes)
    except ValueError as error:
        raise InvalidRequest(
            f"attributes of {item.item_id[:64]!r}", found="not JSON", expected="values that JSON has"
        ) from error
    return ItemChange(
        item_id=item.item_id,
        vector=tuple(item.vector),
        bundle_version=bundle_version if item.vector else "",
        like=tuple(item.like),
        attributes=attributes,
    )
