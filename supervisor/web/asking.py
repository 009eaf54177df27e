"""From a request's body to the ask that is routed: the model's name is in its JSON, or a field of its form."""

from __future__ import annotations

from msgspec.structs import replace

from supervisor.core.routing import Ask
from supervisor.errors import BadRequest
from supervisor.web import forms
from supervisor.web.bodies import Body
from supervisor.web.contents import read
from supervisor.web.routes import Route


def ask_of(body: Body, content_type: str, route: Route, source: str) -> Ask:
    """Raises BadRequest."""
    if route.body != "form":
        ask, body.demands = read(body.data, source, route.tasks)
        return ask if route.computes else replace(ask, tokens=0, letters=None, least=0)
    boundary = forms.boundary(content_type)
    model = forms.field(body.data, boundary, "model")
    if not model:
        raise BadRequest("say which model: the form has no field `model`", param="model")
    stream = (forms.field(body.data, boundary, "stream") or "").lower() in ("true", "1")
    return Ask(model, source, tasks=route.tasks, stream=stream)
