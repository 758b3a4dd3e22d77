"""What a text says: cleaned, felt, named and summed up, sentence by sentence, by a model on this machine or by an LLM.

Trigger it with a text::

    airflow dags trigger llm_text_orchestration --conf '{"text": "I love this. I do not love that."}'

Without more, a lexicon and a statistical model work on it: ``pip install vaderSentiment yake``. When Airflow has a
connection ``text_llm``, they ask that endpoint instead, in the words of OpenAI's interface: its host is the base URL,
its password the key, and its extra may say ``{"model": "…"}``. An endpoint that is busy or broken is asked again, as
tasks are retried.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from airflow.sdk import Connection, Param, dag, get_current_context, task

from air_executor.follow_up import follow_up
from air_executor.jobs import queue_tasks

try:
    from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException
except ImportError:  # Airflow 3.1
    from airflow.exceptions import AirflowFailException, AirflowNotFoundException

CONNECTION = "text_llm"

#: An endpoint may take its time, in seconds.
PATIENCE_S = 60.0

TEXT = (
    "Airflow schedules work, and people like it for that. AirExecutor runs each task in a process of its own. "
    "Nothing waits idly, which is wonderful. Slow and heavy workers were terrible."
)

RETRIED = {"retries": 3, "retry_delay": timedelta(seconds=1)}


def endpoint() -> Connection | None:
    """Return the connection to an LLM, if there is one."""
    try:
        return Connection.get(CONNECTION)
    except AirflowNotFoundException:
        return None


def ask(llm: Connection, question: str, text: str) -> str:
    """Return what an LLM answers.

    :raises httpx.HTTPError: it can't be reached, or is busy or broken: Airflow tries the task again.
    :raises AirflowFailException: it does not want us; another try would be the same.
    """
    import httpx

    model = llm.extra_dejson.get("model", "gpt-4o-mini")
    messages = [{"role": "system", "content": question}, {"role": "user", "content": text}]
    base_url = llm.host if "://" in (llm.host or "") else f"http://{llm.host}:{llm.port or 80}"
    answer = httpx.post(
        f"{str(base_url).rstrip('/')}/v1/chat/completions",
        json={"model": model, "messages": messages, "temperature": 0},
        headers={"Authorization": f"Bearer {llm.password or ''}"},
        timeout=PATIENCE_S,
    )
    if answer.status_code in (400, 401, 403, 404):
        raise AirflowFailException(f"the endpoint says {answer.status_code}: {answer.text[:500]}")
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["message"]["content"]).strip()


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a text."""
    return [each.strip() for each in re.split(r"(?<=[.!?])\s+", text) if each.strip()]


def feeling_of(text: str) -> float:
    """Return how positive a text is: -1 to 1."""
    if llm := endpoint():
        answer = ask(llm, "How positive is this text? Answer with one number from -1 to 1 and nothing else.", text)
        number = re.search(r"-?\d+(\.\d+)?", answer)
        if number is None:
            raise ValueError(f"the endpoint was asked for a number, and answered {answer[:200]!r}")
        return max(-1.0, min(1.0, float(number.group())))
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return float(SentimentIntensityAnalyzer().polarity_scores(text)["compound"])


def phrases_of(text: str, most: int) -> list[str]:
    """Return the key phrases of a text, the weightiest first."""
    if llm := endpoint():
        answer = ask(llm, f"Name up to {most} key phrases of this text, one in each line, and nothing else.", text)
        return [line.strip(" -*") for line in answer.splitlines() if line.strip(" -*")][:most]
    from yake import KeywordExtractor

    return [phrase for phrase, _ in KeywordExtractor(n=2, top=most).extract_keywords(text)]


@task
def clean() -> str:
    """Return the text that the run was given, without markup and needless space."""
    text = str(get_current_context()["params"]["text"])
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)).strip()
    if not text:
        raise AirflowFailException('there is no text: trigger the DAG with --conf \'{"text": "…"}\'')
    return text


@task(**RETRIED)
def sentiment(text: str) -> float:
    """Return how positive the whole text is."""
    return feeling_of(text)


@task(**RETRIED)
def key_phrases(text: str) -> list[str]:
    """Return the key phrases of the whole text."""
    return phrases_of(text, 5)


@task(**RETRIED)
def summary(text: str) -> str:
    """Return the text in one sentence: the LLM's, or the one of its own that has most of the key phrases."""
    if llm := endpoint():
        return ask(llm, "Sum this text up in one sentence.", text)
    phrases = [phrase.lower() for phrase in phrases_of(text, 10)]
    return max(sentences_of(text), key=lambda each: sum(phrase in each.lower() for phrase in phrases))


@task
def split(text: str) -> None:
    """Queue a task for each sentence; only now is it known how many there are."""
    queue_tasks([{"number": number, "sentence": each} for number, each in enumerate(sentences_of(text), 1)])


@task(**RETRIED)
def look_at(number: int, sentence: str) -> dict[str, Any]:
    """Return what one sentence says."""
    return {
        "number": number,
        "sentence": sentence,
        "sentiment": feeling_of(sentence),
        "phrases": phrases_of(sentence, 2),
    }


@task
def report(whole: float, phrases: list[str], summed_up: str, sentences: list[dict[str, Any]]) -> str:
    """Return what was found, for people."""
    lines = [f"In short: {summed_up}", f"Sentiment: {whole:+.2f}", f"Key phrases: {', '.join(phrases)}", ""]
    for each in sorted(sentences, key=lambda each: each["number"]):
        lines.append(
            f"{each['number']:>3}. {each['sentiment']:+.2f}  {each['sentence']}  [{', '.join(each['phrases'])}]"
        )
    text = "\n".join(lines)
    print(text)
    return text


@dag(
    schedule=None,
    catchup=False,
    tags=["air-executor", "example"],
    params={"text": Param(TEXT, type="string", description="the text to look at")},
)
def llm_text_orchestration():
    """Clean, then feel, name and sum up side by side; a follow-up task for each sentence; a report."""
    text = clean()
    sentences = follow_up(split(text), look_at, waves=1)
    report(sentiment(text), key_phrases(text), summary(text), sentences)


llm_text_orchestration()
