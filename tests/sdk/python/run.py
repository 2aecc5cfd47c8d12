"""Runs the scenarios: `python run.py json|protobuf|api [part of a scenario's name]`."""

import asyncio
import sys

from api_scenarios import SCENARIOS as API_SCENARIOS
from client_scenarios import SCENARIOS as CLIENT_SCENARIOS
from kit import Settings, run_all

SUITES = {"json": (CLIENT_SCENARIOS, False), "protobuf": (CLIENT_SCENARIOS, True), "api": (API_SCENARIOS, False)}

if __name__ == "__main__":
    scenarios, binary = SUITES[sys.argv[1]]
    only = sys.argv[2] if len(sys.argv) > 2 else ""
    chosen = [scenario for scenario in scenarios if only in scenario.__doc__]
    sys.exit(1 if asyncio.run(run_all(chosen, Settings(), binary)) else 0)
