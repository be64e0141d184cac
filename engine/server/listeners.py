"""Which methods are served on which address.

The admin address has everything; the public one has neither admin methods nor, unless only this machine can
connect or the settings say so, reflection. All of them hand their calls to the one chain.
"""

from recserve.engine.server.chain import Chain
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.methods import Method, MethodTable
from recserve.engine.server.scopes import ADMIN_SCOPES, REFLECTION_SCOPE
from recserve.engine.server.transports import Receivers, Transport, one_receiver


def new_transports(
    chain: Chain, config: ServerConfig, receivers: Receivers = one_receiver, *, reuse_port: bool = False
) -> list[Transport]:
    """Returns what carries the calls: the public address, then the admin address when there is one.

    ``receivers``: starts the threads that receive the public ones, where the transport leaves that to others.
    """
    public = MethodTable(method for method in chain.methods if is_public(method, config))
    transports = [new_transport(chain, config, public, reuse_port=reuse_port, receivers=receivers)]
    if config.admin_address:
        transports.append(new_transport(chain, config.for_admin(), chain.methods))
    return transports


def is_public(method: Method, config: ServerConfig) -> bool:
    """Returns whether ``method`` is served on the public address."""
    if method.scope == REFLECTION_SCOPE:
        return config.with_reflection
    return method.scope not in ADMIN_SCOPES


def new_transport(
    chain: Chain,
    config: ServerConfig,
    methods: MethodTable,
    *,
    reuse_port: bool = False,
    receivers: Receivers = one_receiver,
) -> Transport:
    """Returns the transport that the settings name; its library is imported here, when it is wanted."""
    if config.transport == "native":
        from recserve.engine.server.transports.native import NativeTransport

        return NativeTransport(chain, config, methods, reuse_port=reuse_port, receivers=receivers)
    from recserve.engine.server.transports.grpcio import GrpcioTransport

    return GrpcioTransport(chain, config, methods, reuse_port=reuse_port)
