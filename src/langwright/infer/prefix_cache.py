"""Which blocks of the cache are free, and which hold the keys of a beginning that may come again. No tensors here.

Known beginnings are a radix tree whose edges are whole blocks of tokens, one tree a tenant, so that nobody can tell
from the time of an answer what others have asked. A block in the tree is kept by those who use it; one that nobody
uses stays until its room is wanted, the longest unused first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Node:
    """One block of a known beginning."""

    block: int
    """-1 for the root of a tree."""
    key: tuple[int, ...] = ()
    """Its tokens."""
    parent: "Node | None" = None
    children: dict[tuple[int, ...], "Node"] = field(default_factory=dict)
    users: int = 0


class PrefixCache:
    """``blocks`` blocks of ``size`` tokens each."""

    def __init__(self, blocks: int, size: int):
        self.blocks, self.size = blocks, size
        self._free = list(range(blocks))[::-1]
        self._roots: dict[str, Node] = {}
        self._idle: dict[Node, str] = {}
        """Nodes that nobody uses, with their tenant; the longest unused first, and children before their parents."""

    @property
    def available(self) -> int:
        """Blocks that can be taken: free ones, and those of beginnings that nobody uses."""
        return len(self._free) + len(self._idle)

    @property
    def known(self) -> int:
        """Blocks of beginnings that nobody uses at the moment."""
        return len(self._idle)

    def match(self, tenant: str, ids: Sequence[int]) -> list[Node]:
        """The longest known beginning of ``ids`` in whole blocks; its nodes are used until `release`."""
        found: list[Node] = []
        node = self._roots.get(tenant)
        while node is not None:
            at = len(found) * self.size
            node = node.children.get(tuple(ids[at : at + self.size]))
            if node is not None:
                self._use(node)
                found.append(node)
        return found

    def add(self, tenant: str, before: Node | None, key: tuple[int, ...], block: int) -> Node:
        """The node of the block with tokens ``key`` after ``before`` (None: at the beginning), in use.

        The tree then owns ``block``, unless it knows these tokens by another one, which is returned instead.
        """
        parent = self._roots.setdefault(tenant, Node(-1)) if before is None else before
        node = parent.children.get(key)
        if node is None:
            node = parent.children[key] = Node(block, key, parent)
            self._idle[node] = tenant
        self._use(node)
        return node

    def take(self, count: int) -> list[int] | None:
        """So many blocks, or None where there are not as many."""
        if count > self.available:
            return None
        while len(self._free) < count:
            node = next(iter(self._idle))
            tenant = self._idle.pop(node)
            assert not node.children
            assert node.parent is not None
            del node.parent.children[node.key]
            if node.parent.parent is None and not node.parent.children:
                del self._roots[tenant]
            self._free.append(node.block)
        return [self._free.pop() for _ in range(count)]

    def release(self, tenant: str, nodes: Sequence[Node]) -> None:
        """End the use of a chain of nodes that `match` or `add` gave."""
        for node in reversed(nodes):
            node.users -= 1
            if not node.users:
                self._idle[node] = tenant

    def give(self, blocks: Sequence[int]) -> None:
        """Take back blocks that the tree does not own."""
        self._free.extend(blocks)

    def _use(self, node: Node) -> None:
        if not node.users:
            del self._idle[node]
        node.users += 1
