"""Search attributes: they make DAG and run searchable in Temporal, once they are registered there."""

from __future__ import annotations

from typing import Any

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.service import RPCError

from air_executor.errors import ConfigError

#: By field of a workflow's header.
_KEYS = {
    "dag": SearchAttributeKey.for_keyword("AirflowDag"),
    "dag_run": SearchAttributeKey.for_keyword("AirflowRun"),
}


async def register(client: Client) -> list[str]:
    """Register the attributes in the namespace, and return a line for each.

    :raises ConfigError: that is not possible here.
    """
    known = await _known(client)
    if new := {key.name for key in _KEYS.values()} - known:
        kind = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
        request = AddSearchAttributesRequest(
            namespace=client.namespace, search_attributes=dict.fromkeys(sorted(new), kind)
        )
        try:
            await client.operator_service.add_search_attributes(request)
        except RPCError as error:
            how = "in Temporal Cloud: temporal cloud namespace search-attributes add, or its UI"
            raise ConfigError(f"the search attributes {sorted(new)} can't be registered ({how}): {error}") from None
    return [f"{key.name}: {'registered' if key.name in new else 'was there'}" for key in _KEYS.values()]


async def are_registered(client: Client) -> bool:
    """Tell whether workflows may have them: with one that is not registered, none starts."""
    return {key.name for key in _KEYS.values()} <= await _known(client)


async def _known(client: Client) -> set[str]:
    try:
        answer = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace=client.namespace)
        )
    except RPCError:
        return set()  # as in Temporal Cloud, which has another service for that
    return set(answer.custom_attributes)


def attributes(header: dict[str, Any]) -> TypedSearchAttributes:
    """Return the attributes of a workflow."""
    return TypedSearchAttributes(
        [SearchAttributePair(key, str(header[name])) for name, key in _KEYS.items() if name in header]
    )
