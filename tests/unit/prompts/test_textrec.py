from dataclasses import replace

import pytest
import torch

from genrl.catalog.dataset import load_dataset
from genrl.catalog.items import Catalog
from genrl.catalog.pools import Pools
from genrl.catalog.sequences import Role
from genrl.config.schema import DataConfig, PoolConfig, PromptConfig, ToyConfig
from genrl.errors import ConfigError, DataError
from genrl.policy.tiny import train_tokenizer
from genrl.prompts.template import PromptMaker, PromptTemplate
from genrl.prompts.textrec import TextTemplate, Writer, source_of

CATALOG = Catalog.from_table(
    ["a", "b", "c", "d", "e"],
    ["Red Pen", "Blue Pen", "Olive Wok", "Steel Wok", "Ivory Rug"],
    ["Office", "Office", "Kitchen", "Kitchen", None],
    train_counts=torch.tensor([3, 1, 4, 1, 5]),
    attributes={"brand": ["P", "P", "W", "W", ""]},
)
CONFIG = PromptConfig(template="textrec", windows=[3], titles=2)
TOY = load_dataset(DataConfig(toy=ToyConfig(world="toy", users=40, items=50)))


def writer(catalog=CATALOG, items=10, **changes) -> Writer:
    return Writer(replace(CONFIG, **changes), catalog, catalog.titles, items)


def template(catalog=CATALOG, chat_template=None, **changes) -> TextTemplate:
    texts = [*catalog.titles, *catalog.category_names, source_of("textrec") * 20, "0123456789 Buy! <user> user\n"]
    tokenizer = train_tokenizer(texts, 400)
    tokenizer.chat_template = chat_template
    sids = torch.arange(len(catalog))[:, None] + 1000
    return TextTemplate(1, (), sids, 0, writer(catalog, **changes), tokenizer)


def test_a_history_is_told_by_time_and_topic_the_latest_first():
    text = writer().write([4, 0, 0, 2, 3, 1, 0])
    assert text.splitlines() == [
        "Lately the user chose 3 items: 2 of Office (Red Pen; Blue Pen), 1 of Kitchen (Steel Wok).",
        "Before that the user chose 4 items: 2 of Office (Red Pen; ...), 1 of Kitchen (Olive Wok), 1 of no topic "
        "(Ivory Rug).",
        "Name 10 items that the user chooses next, the best first, one a line.",
    ]
    assert writer(items=1).write([]) == "Name 1 items that the user chooses next, the best first, one a line."


def test_profile_and_candidates_are_told_where_there_are_some(tmp_path):
    path = tmp_path / "users.csv"
    path.write_text("user_id,age,city\nu1,30,Rome\nu2,,Oslo\n")
    told = writer(profile=str(path), fields=["age", "city"], candidates=True)
    assert told.write([0], "u1", [2, 4]).splitlines()[0] == "About the user: age 30, city Rome."
    assert told.write([0], "u1", [2, 4]).splitlines()[-4:-1] == ["Choose from these:", "Olive Wok", "Ivory Rug"]
    assert told.write([0], "u2").splitlines()[0] == "About the user: city Oslo."
    assert "About" not in told.write([0], "u3")
    assert "Choose" not in writer().write([0], None, [2, 4])
    path.write_text("user_id,age\nu1,30\nu1,31\n")
    with pytest.raises(DataError, match="u1"):
        writer(profile=str(path), fields=["age"]).write([0], "u1")


def test_profiles_of_other_users_are_refused(tmp_path):
    path = tmp_path / "users.csv"
    path.write_text("user_id,age\nu1,30\nu2,31\n")
    told = template(profile=str(path), fields=["age"])
    told.check_users(("u0", "u2"))
    template().check_users(("u0",))
    with pytest.raises(DataError, match=r"about none of the 2 users: ids are 'u1', 'u2' there and '1', '2' in the"):
        told.check_users(("1", "2"))


def test_a_template_is_a_file_and_may_say_all_there_is_of_items(tmp_path):
    path = tmp_path / "mine.j2"
    path.write_text(
        "{% for item in history %}{{ item.name }} ({{ item.attributes.brand }}, {{ item.chosen }}){% endfor %}"
    )
    assert writer(template=str(path)).write([0, 2]) == "Red Pen (P, 3)Olive Wok (W, 4)"
    path.write_text("{{ nothing }}")
    with pytest.raises(ConfigError, match=r"cannot be filled in: 'nothing' is undefined. It gets profile, windows"):
        writer(template=str(path)).write([0])
    path.write_text("{% if %}")
    with pytest.raises(ConfigError, match="is no Jinja2 template"):
        writer(template=str(path)).write([0])
    with pytest.raises(ConfigError, match=r"prompt.template='nowhere.j2' is neither 'textrec' nor a file"):
        writer(template="nowhere.j2").write([0])


def test_prompts_are_padded_on_the_left_and_cut_to_the_most_recent_items():
    made = template()
    histories = torch.tensor([[-1, -1, -1, 0], [4, 3, 2, 1], [-1, -1, -1, -1]])
    tokens, mask = made.render(histories)
    for row, history in enumerate(([0], [4, 3, 2, 1], [])):
        assert tokens[row][mask[row]].tolist() == made.tokens_of(made.writer.write(history))
        assert not mask[row, : tokens.shape[1] - int(mask[row].sum())].any()
    whole = len(made.tokens_of(made.writer.write([4, 3, 2, 1])))
    for most in range(len(made.tokens_of(made.writer.write([]))), whole):
        short = template(max_tokens=most)
        (found,) = short.render(histories[1:2])[0].tolist()
        fitting = [n for n in range(5) if len(made.tokens_of(made.writer.write([4, 3, 2, 1][4 - n :]))) <= most]
        assert found == made.tokens_of(made.writer.write([4, 3, 2, 1][4 - max(fitting) :]))
    with pytest.raises(ConfigError, match=r"without any history has \d+ tokens already, and prompt.max_tokens=3"):
        template(max_tokens=3).render(histories[:1])


def test_a_tokenizer_with_a_chat_template_gets_a_message_of_the_user():
    chat = "{% for m in messages %}<user> {{ m.content }}{% endfor %}{% if add_generation_prompt %} Buy! {% endif %}"
    made = template(chat_template=chat)
    text = made.writer.write([0])
    wanted = made.tokenizer(f"<user> {text} Buy! ", add_special_tokens=False)["input_ids"]
    assert made.tokens_of(text) == wanted
    plain = template(chat_template=chat, chat="off")
    assert plain.tokens_of(text) == [1, *plain.tokenizer(f"{text}\n", add_special_tokens=False)["input_ids"]]


def test_requests_of_a_data_set_list_their_own_pool():
    made = template(TOY.catalog, candidates=True, items=3)
    maker = PromptMaker(TOY, made, 6, Pools(TOY, PoolConfig(size=8, neighbours=3, popular=2)))
    positions = TOY.sequences.rows(Role.TEST)[:4]
    asked = maker.at(positions)
    histories = TOY.sequences.histories(positions, 6)
    for row in range(4):
        history, pool = histories[row][histories[row] >= 0].tolist(), asked.pool[row].tolist()
        assert asked.tokens[row][asked.mask[row]].tolist() == made.tokens_of(made.writer.write(history, None, pool))
        assert TOY.catalog.titles[pool[0]] in made.tokenizer.decode(asked.tokens[row])
    assert not isinstance(made, PromptTemplate)
    assert maker.longest == 512


def test_windows_of_days_are_counted_back_from_the_latest_item():
    told = writer(window_days=[1, 7.5])
    text = told.write([4, 2, 0, 1, 3], ages=[30, 7.5, 1.1, 1.0, 0.0])
    assert text.splitlines()[:3] == [
        "In the 1 day up to the latest one the user chose 2 items: 1 of Kitchen (Steel Wok), 1 of Office (Blue Pen).",
        "1 to 7.5 days before the latest one the user chose 2 items: 1 of Office (Red Pen), 1 of Kitchen (Olive Wok).",
        "More than 7.5 days before the latest one the user chose 1 items: 1 of no topic (Ivory Rug).",
    ]
    assert told.write([4, 3], ages=[30, 0]).count("before the latest one") == 1  # nothing is said of an empty window
    assert told.write([], ages=[]).startswith("Name 10")
    with pytest.raises(ConfigError, match=r"no days are given\. Give them: recommend --days"):
        told.write([4])


def test_prompts_of_a_data_set_tell_its_days_and_keep_them_when_they_are_cut():
    toy = load_dataset(DataConfig(toy=ToyConfig(world="toy", users=40, items=50), time_unit="days"))
    made = template(toy.catalog, window_days=[3, 10], items=3)
    assert made.tells_days
    assert not template().tells_days
    maker = PromptMaker(toy, made, 6)
    positions = toy.sequences.rows(Role.TEST)[:5]
    asked, ages = maker.at(positions), toy.sequences.ages(positions, 6)
    histories = toy.sequences.histories(positions, 6)
    for row in range(5):
        there = histories[row] >= 0
        text = made.writer.write(histories[row][there].tolist(), None, [], ages[row][there].tolist())
        assert asked.tokens[row][asked.mask[row]].tolist() == made.tokens_of(text)
    history, days = histories[0].tolist(), ages[0].tolist()
    least = len(made.tokens_of(made.writer.write(history[-2:], None, [], days[-2:])))
    short = template(toy.catalog, window_days=[3, 10], items=3, max_tokens=least)
    (found,) = short.render(histories[:1], ages=ages[:1])[0].tolist()
    fitting = [made.tokens_of(made.writer.write(history[n:], None, [], days[n:])) for n in range(7)]
    assert found == next(tokens for tokens in fitting if len(tokens) <= least)
