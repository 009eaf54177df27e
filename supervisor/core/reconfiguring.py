"""Another configuration while engines run: who goes on, who goes on under new terms, who ends and comes again.

An engine whose arguments changed, or whose profile went, keeps its record and its profile as long as it holds memory:
what is in flight on it ends there. It is outdated, and with it the record ends.
"""

from __future__ import annotations

from supervisor.config import Config, Profile
from supervisor.config import Peer as Configured
from supervisor.core import arriving, calendar, coming, command, kinds, leaving, orders
from supervisor.core.engine import Engine
from supervisor.core.events import Reconfigured
from supervisor.core.fleet import Fleet, beside, taken
from supervisor.core.lifecycle import COMING, HOLDING, Reason, State
from supervisor.core.peer import Peer
from supervisor.errors import LlmdError, ModelNotFound


def reconfigure(event: Reconfigured, fleet: Fleet) -> None:
    """Change the fleet to `event.config` in one step. Requests in flight are left alone, those that wait are not."""
    old, before = fleet.config, fleet.available
    fleet.config, fleet.remembered = event.config, event.learned
    _limits(fleet)
    fleet.peers = {name: _peer(fleet, name, peer) for name, peer in event.config.peers.items()}
    for engine in fleet.engines.values():
        _take_up(fleet, engine, old)
    renew(fleet)
    calendar.reconfigured(fleet, event.mode, before)
    _route_anew(fleet)
    fleet.stuck.clear()
    words = "; ".join(event.changes) or "nothing differs"
    facts = {"changes": list(event.changes)}
    fleet.order(orders.Note("reconfigured", None, f"another configuration holds: {words}", "INFO", facts))


def _limits(fleet: Fleet) -> None:
    """What was copied out of the configuration."""
    config = fleet.config
    fleet.ledger.memory = config.memory
    fleet.homes.ttl = config.routing.sticky
    fleet.fairness.weights = {source: key.weight for source, key in config.keys.items()}


def _peer(fleet: Fleet, name: str, configured: Configured) -> Peer:
    """With what is in flight there, also where it was not configured for a while."""
    if peer := fleet.peers.get(name):
        peer.reconfigure(configured)
        return peer
    granted = fleet.leases.items()
    leases = {lease for lease, given in granted if given.profile == name and not given.incarnation}
    return Peer(name, configured, leases=leases)


def _take_up(fleet: Fleet, engine: Engine, old: Config) -> None:
    new = fleet.config.profiles.get(engine.name)
    if new is None:
        _dismiss(fleet, engine)
    elif engine.outdated or (new == engine.profile and not _differs(engine, new, old, fleet.config)):
        return
    elif engine.state not in HOLDING:
        engine.outdated = True
    elif _differs(engine, new, old, fleet.config):
        _replace(fleet, engine)
    else:
        _retune(fleet, engine, new)


def _differs(engine: Engine, new: Profile, old: Config, config: Config) -> bool:
    return command.recipe(engine.profile, old) != command.recipe(new, config)


def _replace(fleet: Fleet, engine: Engine) -> None:
    """What was loaded, or loads, is loaded again with its new arguments."""
    again = engine.state in COMING | {State.READY}
    engine.outdated, engine.wanted = True, engine.wanted or again
    leaving.retire(fleet, engine, Reason.CONFIG, "its profile changed", patient=True)


def _dismiss(fleet: Fleet, engine: Engine) -> None:
    engine.outdated = True
    engine.give_up_wanting()
    message = f"{engine.name} is no longer configured"
    for ticket in taken(engine.start_tickets):
        fleet.order(orders.Answer(ticket, message, ModelNotFound(message)))
    leaving.retire(fleet, engine, Reason.CONFIG, "its profile is no longer configured", patient=True)


def _retune(fleet: Fleet, engine: Engine, new: Profile) -> None:
    """Nothing that its process would notice."""
    engine.profile = new
    if engine.state is State.READY and not engine.leases:
        engine.deadline = coming.bedtime(fleet, engine)
    elif engine.state is State.SLEEPING and engine.settled and not engine.is_to_stop:
        engine.deadline = coming.bedtime_asleep(fleet, engine)


def renew(fleet: Fleet) -> None:
    """Begin a new record for each profile whose outdated one is over, or that has none yet."""
    engines, profiles = fleet.engines, fleet.config.profiles
    over = {name for name, engine in engines.items() if engine.outdated and engine.state not in HOLDING}
    if not over and profiles.keys() <= engines.keys():
        return
    kept = {name: engine for name, engine in engines.items() if name not in over}
    fresh = {
        name: _fresh(fleet, new, engines.get(name)) for name, new in profiles.items() if name not in kept
    }
    fleet.engines = {name: (kept | fresh)[name] for name in dict.fromkeys((*profiles, *kept))}
    fleet.beside = beside([engine.profile for engine in fleet.engines.values()])
    fleet.stuck.clear()


def _fresh(fleet: Fleet, profile: Profile, former: Engine | None) -> Engine:
    """Without its former's failures, but for whoever wants it, or wants it to stay."""
    engine = Engine(profile)
    engine.recall(fleet.remembered.get(profile.name, ()))
    if former is not None:
        engine.wanted, engine.patient_until = former.wanted, former.patient_until
        engine.pinned_by_hand = former.pinned_by_hand
        engine.start_tickets, engine.starts = former.start_tickets, former.starts
    return engine


def _route_anew(fleet: Fleet) -> None:
    """Everyone who waits, by the routing that holds now, in the order in which they came."""
    for waiter in sorted(fleet.queues, key=lambda waiter: waiter.arrived):
        fleet.queues.remove(waiter.lease)
        try:
            home = fleet.home(waiter.ask.conversation)
            kind = kinds.look(fleet, waiter.ask, home, waiter.deadline - fleet.now)
        except LlmdError as error:
            fleet.refuse(waiter.lease, error)
            continue
        arriving.tell(fleet, waiter.lease, waiter.ask, kind.route)
        if not kind.route.candidates:
            fleet.refuse(waiter.lease, calendar.closed(fleet, waiter.ask.model), waiter.ask)
            continue
        moved = kind.waiter(waiter.lease, waiter.ask, waiter.arrived, waiter.deadline)
        moved.told = True
        fleet.queues.add(moved)


# What a person hears beforehand


def foresee(fleet: Fleet, config: Config) -> dict[str, str]:
    """Profile -> what `config` would do to its engine, for those that run."""
    running = (e for e in fleet.engines.values() if e.claims() and not e.outdated)
    return {engine.name: words for engine in running if (words := _fate(fleet, engine, config))}


def _fate(fleet: Fleet, engine: Engine, config: Config) -> str | None:
    new, busy = config.profiles.get(engine.name), len(engine.leases)
    way = f"its engine ends after {busy} in flight" if busy else "its engine ends"
    if new is None:
        return way
    if _differs(engine, new, fleet.config, config):
        return f"{way} and {'starts' if engine.state is not State.SLEEPING else 'is started when asked for'} anew"
    return None if new == engine.profile else "its engine runs on"
