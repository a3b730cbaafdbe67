"""The tower, lookups and steps against the paper's literal form.

Start at `forms.py`.
"""
