"""The report of a result as one self-contained HTML page: facts, charts, a template.

record.json (what the command line measured) ┐
the result (report, tensors, scope) ─────────┴ facts → charts → render → report.html
"""
