"""How a job's messages are written, and which files and services get a report of its start and end."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_serializer, model_validator

from sparkcf.config.section import Section

Name = Annotated[str, Field(min_length=1)]


class LogConfig(Section):
    format: Literal["text", "json"] = "text"  # form of the messages on standard error; json: one object a line


class ReportConfig(Section):
    # file of the page about a night, on the driver's machine; {ds} is replaced by the logical date; null: none
    path: Annotated[str, Field(min_length=1)] | None = None
    # users whose histories and lists the page shows; 0: none, and no user's id is in it
    users: Annotated[int, Field(ge=0, le=50)] = 10


class FailureConfig(Section):
    """Hooks that are called after a job that ends with another exit code than 0 or 5."""

    # program and arguments, started after an exit code other than 0 or 5 with the job's last line of output (JSON) as
    # standard input; of its words only the first is stored; empty: none
    command: tuple[str, ...] = ()
    webhook: SecretStr | None = None  # address that gets that line by HTTP POST; never printed or stored
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 10.0  # seconds for the command, and for each wait of the webhook

    @field_serializer("command", when_used="json")
    def _program(self, command: tuple[str, ...]) -> list[str]:
        """Arguments may be secrets."""
        return [*command[:1], *("***" for _ in command[1:])]

    @model_validator(mode="after")
    def _addressed(self) -> Self:
        if self.webhook and not re.match(r"https?://[^@\s]+$", self.webhook.get_secret_value()):
            raise ValueError("webhook is not an address that begins with http:// or https://, without blanks or a user")
        if self.command and not self.command[0]:
            raise ValueError("command names no program: its first word is empty")
        return self


class ObserveConfig(Section):
    """Files and services that get a report of every job; if one fails, the job says so in a line and goes on."""

    prometheus: Name | None = None  # file of gauges for the textfile collector of Prometheus' node exporter
    openlineage: Name | None = None  # file to which START, COMPLETE and FAIL events of OpenLineage are appended
    mlflow: SecretStr | None = None  # tracking address of MLflow, where runs are mirrored; needs the extra [mlflow]
    mlflow_experiment: Name = "sparkcf"  # experiment of MLflow that has the runs
    on_failure: FailureConfig = FailureConfig()
