"""Importing packages ahead: what may be, and what it must not leave behind."""
