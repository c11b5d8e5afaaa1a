"""``python -m analysis report``: all that some records say, on one page that needs no network.

`content` gathers the parts as plain values, `page` makes HTML of them; what a reader sees only after a click travels as one compressed
JSON that `assets/report.js` opens. Plots are plotly's, whose library is in the page.
"""
