"""The service whose engine says what it is told to: that of the tests of the device code."""

from __future__ import annotations

from tests.payloads.serve import conftest as serve

script, service, api, server = serve.script, serve.service, serve.api, serve.server
