"""Looking at kept episodes: `paw view` (a page), `paw episodes` (text).

library.py  runs, their kept files, episodes and steps, as plain values; both ways to look take them from here
places.py   names of places: links lead to them
terminal.py episodes as text
server.py   the page, served on loopback
single.py   the page as one file, with its data in it
page/       the page: HTML, CSS and JavaScript as they are sent, no build step and nothing from elsewhere
"""
