"""Running a service: options, signals, exit code, metrics and health. Needs the extra `tickbus[service]`."""

from tickbus.service.consumer_service import run_consumer, running
from tickbus.service.load_options import load
from tickbus.service.options import CommonOptions, Option, OwnerOptions, ServiceOptions, WriterOptions
from tickbus.service.runner import Service, run

__all__ = [
    "CommonOptions",
    "Option",
    "OwnerOptions",
    "Service",
    "ServiceOptions",
    "WriterOptions",
    "load",
    "run",
    "run_consumer",
    "running",
]
