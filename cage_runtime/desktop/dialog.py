# SPDX-License-Identifier: LGPL-2.1-or-later
"""The window of one prompt.

Law of this room: labels are set as text, never as markup; nothing is selected or has the keyboard's focus before the
person has given it that; Enter answers nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from cage_runtime.desktop import guard
from cage_runtime.desktop import prompt as words
from cage_runtime.desktop.prompt import ALLOWS, Answer, End, Prompt
from cage_runtime.desktop.toolkit import Gdk, GLib, Gtk, Pango

WIDTH = 560
LINES_HEIGHT, CHOICES_HEIGHT, FACTS_HEIGHT = 160, 160, 200
"""Pixels; what does not fit is scrolled to."""
SPACE = 12
_PAINT = "label {{ background-color: {colour}; color: {ink}; padding: 4px 10px; border-radius: 4px; }}"
_ENTER = ("Return", "KP_Enter", "ISO_Enter")


class Dialog:
    def __init__(self, prompt: Prompt, answer: Callable[[Answer, int, str], None], put_aside: Callable[[], None],
                 *, clock: Callable[[], float] = time.monotonic) -> None:
        """`answer` is told what the person has answered, with the minutes and the target that are chosen; `put_aside`
        that the window is to be closed without."""
        self.prompt = prompt
        self._answer, self._put_aside = answer, put_aside
        self._guard = guard.Guard(clock)
        self._chosen = prompt.chosen
        self._sent = False
        self._timer = 0
        self._buttons: dict[Answer, Any] = {}
        self.window = Gtk.Window(title=f"{prompt.source}: {prompt.service}", resizable=False, focus_on_map=False,
                                 urgency_hint=True, window_position=Gtk.WindowPosition.CENTER)
        self.window.set_keep_above(True)
        self.window.connect("delete-event", self._closed)
        self.window.connect("key-press-event", self._pressed)
        self.window.connect("focus-in-event", self._focused)
        self.window.connect("focus-out-event", self._left)
        self._said = _line("")
        self.window.add(self._content())
        self._refresh()

    def show(self) -> None:
        self.window.show_all()
        self._said.hide()
        # GTK has given the focus to the first that takes it.
        self.window.set_focus(None)

    def destroy(self) -> None:
        if self._timer:
            GLib.source_remove(self._timer)
            self._timer = 0
        self.window.destroy()

    def refused(self, sentence: str) -> None:
        """What was answered has not been taken; the person may answer again."""
        self._sent = False
        self._said.set_text(sentence)
        self._said.show()
        self._guard.changed()
        self._wake_later()

    # --- what it shows ---------------------------------------------------------------------------------------
    def _content(self) -> Any:
        box = Gtk.Box(orientation=Gtk.Orientation.VERTICAL, spacing=SPACE, border_width=2 * SPACE)
        box.set_size_request(WIDTH, -1)
        box.add(_end(words.source(self.prompt)))
        box.add(_line(words.wish(self.prompt)))
        box.add(_end(words.target(self.prompt)) if self.prompt.target else self._choices())
        if self.prompt.lines:
            box.add(_verbatim("\n".join(self.prompt.lines)))
        box.add(_facts(words.facts(self.prompt)))
        box.add(self._said)
        self._minutes = self._spin()
        box.add(self._answers())
        return box

    def _choices(self) -> Any:
        rows = Gtk.Box(orientation=Gtk.Orientation.VERTICAL, spacing=SPACE // 2)
        nothing = Gtk.RadioButton()  # one of a group is always chosen: this one, which nobody sees
        self._radios = [nothing]
        for name in self.prompt.choices:
            radio = Gtk.RadioButton(group=nothing)
            radio.add(_end(words.choice(self.prompt, name)))
            radio.set_active(name == self._chosen)
            radio.connect("toggled", self._chose, name)
            self._radios.append(radio)
            rows.add(radio)
        return _scrolled(rows, CHOICES_HEIGHT)

    def _spin(self) -> Any:
        most = words.most_minutes(self.prompt)
        spin = Gtk.SpinButton.new_with_range(1, max(1, most), 1)
        spin.set_value(min(words.MINUTES, most) if not self.prompt.stands else max(1, most))
        spin.connect("value-changed", lambda _spin: self._refresh())
        spin.set_sensitive(most > 1)
        return spin

    def _answers(self) -> Any:
        grid = Gtk.Grid(column_spacing=SPACE, row_spacing=SPACE)
        places = {Answer.DENY: (0, 0), Answer.DENY_WHILE: (0, 1), Answer.ONCE: (1, 0), Answer.WHILE: (1, 1),
                  Answer.SESSION: (2, 0)}
        for answer in words.offered(self.prompt):
            button = Gtk.Button(hexpand=True)
            button.add(Gtk.Label())
            button.connect("clicked", self._clicked, answer)
            self._buttons[answer] = button
            grid.attach(button, *places[answer], 1, 1)
        grid.attach(_beside(self._minutes, "minutes"), 2, 1, 1, 1)
        return grid

    def _refresh(self) -> None:
        """What is on the buttons, and which of them live."""
        minutes = int(self._minutes.get_value())
        for answer, button in self._buttons.items():
            button.get_child().set_text(words.words(self.prompt, answer, minutes))
            button.set_sensitive(self._may(answer))

    def _may(self, answer: Answer) -> bool:
        return self._guard.alive and not self._sent and words.possible(self.prompt, answer, self._chosen)

    # --- what a person does ----------------------------------------------------------------------------------
    def _clicked(self, _button: Any, answer: Answer) -> None:
        if not self._may(answer):
            return
        self._sent = True
        self._said.hide()
        self._refresh()
        self._answer(answer, int(self._minutes.get_value()), self._chosen if answer in ALLOWS else "")

    def _chose(self, radio: Any, name: str) -> None:
        if radio.get_active():
            self._chosen = name
        self._refresh()

    def _pressed(self, _window: Any, event: Any) -> bool:
        key = Gdk.keyval_name(event.keyval)
        if key == "Escape":
            self._put_aside()
        return key == "Escape" or key in _ENTER

    def _closed(self, *_: object) -> bool:
        self._put_aside()
        return True

    def _focused(self, *_: object) -> bool:
        self.window.set_urgency_hint(False)
        self._guard.focused()
        self._wake_later()
        return False

    def _left(self, *_: object) -> bool:
        self._guard.left()
        self._refresh()
        return False

    def _wake_later(self) -> None:
        """The buttons live when they may; until then they look as dead as they are."""
        self._refresh()
        if self._timer:
            GLib.source_remove(self._timer)
        self._timer = GLib.timeout_add(int(guard.DEAD_SECONDS * 1000) + 10, self._woken)

    def _woken(self) -> bool:
        self._timer = 0
        self._refresh()
        return False


def _line(text: str) -> Any:
    """A line of ours, or of values that have no more than letters; never markup."""
    label = Gtk.Label(xalign=0, wrap=True, max_width_chars=60)
    label.set_text(text)
    return label


def _end(end: End) -> Any:
    """A cage's name, and its label on its level's colour."""
    return _row(_line(end.name), _badge(end)) if end.label else _line(end.name)


def _badge(end: End) -> Any:
    label = Gtk.Label()
    label.set_text(end.label)
    if end.colour:
        provider = Gtk.CssProvider()
        provider.load_from_data(_PAINT.format(colour=end.colour, ink=words.ink(end.colour)).encode())
        label.get_style_context().add_provider(provider, Gtk.STYLE_PROVIDER_PRIORITY_APPLICATION)
    return label


def _row(*widgets: Any) -> Any:
    row = Gtk.Box(spacing=SPACE)
    for widget in widgets:
        row.add(widget)
    return row


def _beside(widget: Any, text: str) -> Any:
    return _row(widget, _line(text))


def _verbatim(text: str) -> Any:
    """A cage's own words, in a field of their own, out of which no mark above or below a letter reaches."""
    view = Gtk.TextView(editable=False, cursor_visible=False, can_focus=False, monospace=True,
                        wrap_mode=Gtk.WrapMode.WORD_CHAR, left_margin=SPACE, right_margin=SPACE)
    view.get_buffer().set_text(text)
    scrolled = _scrolled(view, LINES_HEIGHT)
    scrolled.set_shadow_type(Gtk.ShadowType.IN)
    return scrolled


def _scrolled(widget: Any, height: int) -> Any:
    scrolled = Gtk.ScrolledWindow(hscrollbar_policy=Gtk.PolicyType.NEVER, propagate_natural_height=True,
                                  max_content_height=height)
    scrolled.add(widget)
    return scrolled


def _facts(rows: list[tuple[str, str]]) -> Any:
    grid = Gtk.Grid(column_spacing=SPACE, row_spacing=SPACE // 2)
    for at, (name, value) in enumerate(rows):
        title = _line(name)
        title.set_valign(Gtk.Align.START)
        title.get_style_context().add_class("dim-label")
        shown = _line(value)
        shown.set_line_wrap_mode(Pango.WrapMode.WORD_CHAR)
        whole = Pango.AttrList()
        whole.insert(Pango.attr_insert_hyphens_new(False))
        shown.set_attributes(whole)
        grid.attach(title, 0, at, 1, 1)
        grid.attach(shown, 1, at, 1, 1)
    return _scrolled(grid, FACTS_HEIGHT)
