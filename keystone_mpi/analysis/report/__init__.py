"""The report: one HTML file that explains a run, with no network, no server and no library.

Rule: everything that a user or a solver wrote is data, never markup: it is
escaped in the page, and again in the JSON that the page's own script reads.
A content security policy names that script by its digest; nothing else runs.

    Run --facts.py--> plain data --page.py--> HTML + report.css + report.js --> one file
"""

from keystone_mpi.analysis.report.page import render_report

__all__ = ["render_report"]
