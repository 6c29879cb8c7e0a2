"""Tables of texts: shipped ones by name, the user's by file, mistakes in one line."""

from __future__ import annotations

import pytest

from anomaly_vlm.errors import UserError
from anomaly_vlm.texts import load_texts, shipped, table_key


def test_every_shipped_table_is_readable():
    for name in shipped():
        assert load_texts(name)


def test_a_file_of_the_users_is_read(tmp_path):
    (tmp_path / "mine.json").write_text('{"gear": ["worn tooth"]}')
    assert load_texts(str(tmp_path / "mine.json")) == {"gear": ["worn tooth"]}


@pytest.mark.parametrize(("content", "told"), [("{", "no JSON"), ("[1]", "holds a list")])
def test_a_wrong_file_is_rejected(tmp_path, content, told):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(UserError, match=told):
        load_texts(str(tmp_path / "mine.json"))


def test_unknown_names_are_rejected():
    with pytest.raises(UserError, match="table of texts"):
        load_texts("nonsense")
    with pytest.raises(UserError, match="does not exist"):
        load_texts("./nonsense.json")


def test_tables_name_categories_with_underscores():
    assert table_key("Metal nut") == "metal_nut"
