"""A cluster policy that logs, as companies have."""

import logging
import os
import warnings

import structlog

std = logging.getLogger("of.the.local.settings")
struct = structlog.get_logger("of.the.local.settings.structlog")

logging.getLogger("quiet.by.local.settings").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="ignored by local settings")
os.environ["SET_BY_LOCAL_SETTINGS"] = "yes"


def task_policy(task):
    if task.task_id == "says":
        std.info("the policy of %s", task.task_id)
        struct.info("the policy", of=task.task_id)
        task.doc_md = "by the policy"
