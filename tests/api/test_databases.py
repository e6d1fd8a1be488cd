"""Opening a database: how each of the two is set up, and what an operator reads where it cannot be opened."""

import sys
import threading

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError

from api.database import Database, is_away, open_database, shown_url
from api.engines import LOG_LIMIT_BYTES, PAGE_BYTES, make_engine
from planner.spec.errors import InputError


@pytest.mark.parametrize(
    "url",
    ["nonsense", "sqlite://", "sqlite:///:memory:", "sqlite:////no/such/folder/x.db", "nosuch://x", "mysql://x/y"],
)
def test_a_database_that_cannot_be_opened_is_the_user_s_to_mend(url):
    with pytest.raises(InputError, match="database_url"):
        open_database(url)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "x.db").write_text("not a database at all" * 100)
    with pytest.raises(InputError, match="database_url"):
        open_database(f"sqlite:///{tmp_path}/x.db")


def test_a_server_that_is_away_is_told_in_one_line(tmp_path):
    with pytest.raises(InputError, match="database_url") as raised:
        open_database(f"postgresql://somebody:secret@/db?host={tmp_path}")
    assert "\n" not in str(raised.value) and "secret" not in str(raised.value)
    assert "connection" in str(raised.value) and str(tmp_path) in str(raised.value)


def test_without_the_driver_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError, match=r"pip install 'trimtab\[postgres\]'"):
        make_engine("postgresql://host/db")


def test_another_driver_is_refused():
    with pytest.raises(InputError, match="psycopg 3"):
        make_engine("postgresql+psycopg2://host/db")


def test_an_operator_s_own_options_of_a_connection_stand(postgres_url):
    engine = make_engine(f"{postgres_url}&application_name=ours&options=-c%20statement_timeout%3D5000")
    with engine.connect() as connection:
        assert connection.scalar(text("SHOW application_name")) == "ours"
        assert connection.scalar(text("SHOW statement_timeout")) == "5s"
    engine.dispose()


def test_passwords_are_not_shown():
    assert "secret" not in shown_url("postgresql://user:secret@host/db")


def test_a_file_is_written_ahead_and_checks_foreign_keys(database):
    with database.reading() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA foreign_keys")) == 1
        assert session.scalar(text("PRAGMA busy_timeout")) >= 1000
        assert session.scalar(text("PRAGMA page_size")) == PAGE_BYTES
        assert session.scalar(text("PRAGMA journal_size_limit")) == LOG_LIMIT_BYTES
        assert session.scalar(text("PRAGMA synchronous")) == 1  # NORMAL, see api/engines.py


@pytest.fixture
def notes(database):
    """A table to write into, beside those of the service."""
    with database.writing() as session:
        session.execute(text("CREATE TABLE notes (number INTEGER PRIMARY KEY)"))
        session.execute(text("INSERT INTO notes VALUES (0)"))
    return database


def many(work, number=4):
    """Do it in several threads at once; what they raised."""
    raised = []

    def one():
        try:
            work()
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=one) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


@pytest.mark.both_databases
def test_what_a_writer_read_stays_true_until_its_end(notes):
    def add_one():
        for _ in range(10):
            with notes.writing() as session:
                last = session.scalar(text("SELECT max(number) FROM notes"))
                session.execute(text(f"INSERT INTO notes VALUES ({last + 1})"))

    assert many(add_one) == []
    with notes.reading() as session:
        assert session.scalar(text("SELECT count(*) FROM notes")) == 41


@pytest.mark.both_databases
def test_a_reader_sees_one_moment_and_keeps_no_writer_waiting(notes):
    with notes.reading() as reader:
        before = reader.scalar(text("SELECT count(*) FROM notes"))
        with notes.writing() as writer:
            writer.execute(text("INSERT INTO notes VALUES (1)"))
        assert reader.scalar(text("SELECT count(*) FROM notes")) == before
    with notes.reading() as reader:
        assert reader.scalar(text("SELECT count(*) FROM notes")) == before + 1


@pytest.mark.both_databases
def test_a_writer_that_fails_leaves_the_lock_to_the_next(notes):
    def add_and_fail():
        with notes.writing() as session:
            session.execute(text("INSERT INTO notes VALUES (1)"))
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            add_and_fail()
    with notes.reading() as session:
        assert session.scalar(text("SELECT count(*) FROM notes")) == 1


def test_reading_writes_nothing_on_postgresql(postgres_url):
    database = open_database(postgres_url)
    with pytest.raises(Exception, match="read-only"), database.reading() as session:
        session.execute(text("DELETE FROM searches"))
    database.close()


def test_a_server_that_is_started_anew_is_found_again(postgres, postgres_url):
    database = open_database(postgres_url)
    database.check()
    postgres.stop()
    with pytest.raises(Exception, match="connection"):
        database.check()
    postgres.start()
    database.check()
    with database.writing() as session:
        assert session.scalar(text("SELECT 1")) == 1
    database.close()


def test_a_writer_that_waits_too_long_gives_up_and_may_come_again(postgres_url):
    patient = open_database(postgres_url)
    hasty = Database(make_engine(f"{postgres_url}&options=-c%20lock_timeout%3D100"))

    def write():
        with hasty.writing() as session:
            return session.scalar(text("SELECT 1"))

    with patient.writing() as session:
        session.execute(text("SELECT 1"))
        with pytest.raises(OperationalError, match="lock timeout"):
            write()
    assert write() == 1
    hasty.close()
    patient.close()


def test_a_writer_that_says_nothing_for_long_loses_the_lock(postgres_url):
    patient = open_database(postgres_url)
    stopped = Database(make_engine(f"{postgres_url}&options=-c%20idle_in_transaction_session_timeout%3D100"))

    def stop_in_the_middle():
        with stopped.writing() as session:
            session.execute(text("SELECT 1"))
            with patient.writing() as other:
                assert other.scalar(text("SELECT 1")) == 1
            session.execute(text("SELECT 1"))

    with pytest.raises(DBAPIError, match="idle-in-transaction") as raised:
        stop_in_the_middle()
    assert is_away(raised.value), "who stopped, not what was asked, is to blame"
    stopped.close()
    patient.close()
