"""Which SQL of users is run: one SELECT, of known tables, with known functions.

DuckDB itself parses the text and gives its tree (``json_serialize_sql``); every node of it must be
on a list. Lists of what is allowed, because a database grows doors that no list of forbidden ones
knows: a COPY inside a CTE is a SELECT and writes files, a plain name in FROM may be a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import duckdb

LONGEST = 64 * 1024  # characters
DEEPEST = 200  # nested nodes


class Refused(ValueError):
    """This SQL is not run; the message says why."""


def _names(*texts: str) -> frozenset[str]:
    return frozenset(" ".join(texts).split())


_EXPRESSIONS = _names(
    """
    BETWEEN CASE CAST COLLATE COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION LAMBDA LAMBDA_REF
    OPERATOR POSITIONAL_REFERENCE STAR SUBQUERY TYPE WINDOW
    """,
)
_NODES = _names(
    # queries and what modifies them
    """
    SELECT_NODE SET_OPERATION_NODE RECURSIVE_CTE_NODE CTE_NODE LIMIT_MODIFIER ORDER_MODIFIER
    DISTINCT_MODIFIER LIMIT_PERCENT_MODIFIER ORDER_DEFAULT ASCENDING DESCENDING
    """,
    # what stands in FROM
    """
    BASE_TABLE EMPTY EXPRESSION_LIST JOIN PIVOT SHOW_REF SUBQUERY TABLE_FUNCTION
    """,
)
_TABLE_FUNCTIONS = _names("generate_series json_each json_tree range unnest")
_FUNCTIONS = _names(
    # operators
    """
    !~~ !~~* % & && * ** + - -> ->> / // << <@ = >> @ @> ^ ^@ | || ~ ~~ ~~* ~~~ !__postfix xor
    """,
    # numbers
    """
    abs acos add asin atan atan2 bit_count cbrt ceil ceiling cos cot degrees divide even exp
    factorial fdiv floor fmod gcd greatest isfinite isinf isnan lcm least ln log log10 log2 mod
    multiply pi pow power radians random round round_even sign signbit sin sqrt subtract tan
    trunc
    """,
    # text
    """
    ascii bar base64 char_length character_length chr concat concat_ws contains
    damerau_levenshtein decode encode ends_with format formatreadablesize from_base64 from_hex
    hash hex instr jaccard jaro_similarity jaro_winkler_similarity lcase left len length
    levenshtein lower lpad ltrim md5 octet_length ord position prefix printf regexp_escape
    regexp_extract regexp_extract_all regexp_full_match regexp_matches regexp_replace
    regexp_split_to_array repeat replace reverse right rpad rtrim sha1 sha256 split split_part
    starts_with str_split string_split string_to_array strip_accents strlen strpos substr
    substring suffix to_base64 to_hex translate trim ucase unhex unicode upper url_decode
    url_encode
    """,
    # time
    """
    age century current_date current_localtimestamp date_add date_diff date_part date_sub
    date_trunc datediff datepart datesub datetrunc day dayname dayofmonth dayofweek dayofyear
    decade epoch epoch_ms epoch_ns epoch_us era hour isodow isoyear last_day make_date make_time
    make_timestamp make_timestamp_ms make_timestamp_ns microsecond millennium millisecond minute
    month monthname now quarter second strftime strptime time_bucket to_days to_hours
    to_microseconds to_milliseconds to_minutes to_months to_seconds to_weeks to_years today
    try_strptime week weekday weekofyear year yearweek
    """,
    # JSON, lists, structs, maps, identifiers
    """
    apply array_agg array_append array_concat array_contains array_distinct array_extract
    array_filter array_has array_length array_position array_slice array_sort array_to_json
    array_to_string array_transform cardinality element_at filter flatten from_json
    generate_series json json_array json_array_length json_each json_tree json_contains
    json_exists json_extract json_extract_path json_extract_path_text json_extract_string
    json_group_array json_group_object json_keys json_merge_patch json_object json_pretty
    json_quote json_structure json_transform json_type json_valid json_value list_aggregate
    list_any_value list_append list_apply list_avg list_concat list_contains list_count
    list_distinct list_element list_extract list_filter list_has list_has_all list_has_any
    list_intersect list_max list_median list_min list_pack list_position list_reduce
    list_reverse list_reverse_sort list_select list_slice list_sort list_sum list_transform
    list_unique list_value list_zip map map_entries map_extract map_from_entries map_keys
    map_values range row row_to_json struct_extract struct_insert struct_pack to_json typeof
    unnest uuid_extract_timestamp uuid_extract_version
    """,
    # conditions
    """
    coalesce constant_or_null error if ifnull nullif
    """,
    # aggregates and windows
    """
    any_value approx_count_distinct approx_quantile approx_top_k arbitrary arg_max arg_max_null
    arg_min arg_min_null argmax argmin avg bit_and bit_or bit_xor bool_and bool_or corr count
    count_if count_star countif covar_pop covar_samp cume_dist dense_rank entropy favg first
    first_value fsum geomean group_concat histogram kurtosis lag last last_value lead list
    listagg mad max max_by mean median min min_by mode nth_value ntile percent_rank product
    quantile quantile_cont quantile_disc rank rank_dense regr_avgx regr_avgy regr_count
    regr_intercept regr_r2 regr_slope row_number skewness stddev stddev_pop stddev_samp
    string_agg sum sumkahan var_pop var_samp variance
    """,
)


def check(connection: duckdb.DuckDBPyConnection, sql: str, tables: Iterable[str]) -> None:
    """Return when this SQL may run.

    Args:
        connection: any; it only parses.
        tables: names that may be read.

    Raises:
        Refused: it may not.
    """
    if len(sql) > LONGEST:
        raise Refused(f"the query is {len(sql):,} characters long; at most {LONGEST:,} are read")
    ((text,),) = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()
    tree = json.loads(text)
    if tree["error"]:
        why = tree["error_message"]
        raise Refused("only SELECT is answered" if "Only SELECT" in why else why)
    if len(tree["statements"]) != 1:
        raise Refused("give one statement at a time")
    guard = _Guard({name.lower() for name in tables})
    guard.find_ctes(tree, 0)
    guard.look(tree["statements"][0]["node"])


class _Guard:
    """Walks a tree; raises Refused at the first node that is on no list."""

    def __init__(self, tables: set[str]) -> None:
        self.tables = tables
        self.ctes: set[str] = set()

    def find_ctes(self, node: Any, depth: int) -> None:
        """The names of all CTEs; they may stand where tables do, but not hide one."""
        if depth > 4 * DEEPEST:
            raise Refused("the query is nested too deeply")
        if isinstance(node, list):
            for each in node:
                self.find_ctes(each, depth + 1)
        if not isinstance(node, dict):
            return
        for entry in (node.get("cte_map") or {}).get("map", ()):
            name = entry["key"].lower()
            if name in self.tables:
                raise Refused(f"the CTE {name} has the name of a table; give it another")
            self.ctes.add(name)
        for each in node.values():
            self.find_ctes(each, depth + 1)

    def look(self, node: Any) -> None:
        if isinstance(node, list):
            for each in node:
                self.look(each)
        elif isinstance(node, dict):
            self._look_at(node)
            for key, each in node.items():
                if key != "literal":
                    self.look(each)

    def _look_at(self, node: Mapping[str, Any]) -> None:
        kind, expression = node.get("type"), node.get("class")
        if expression is not None:
            if expression not in _EXPRESSIONS:
                raise Refused(f"{_words(expression)} is not allowed here")
        elif isinstance(kind, str) and kind not in _NODES:
            raise Refused(f"{_words(kind)} is not allowed here")
        if "function_name" in node:
            self._look_at_function(node)
        if kind == "BASE_TABLE":
            self._look_at_table(node)
        if kind == "SHOW_REF" and node["query"] is None and node["table_name"] != '"tables"':
            raise Refused("of SHOW, only SHOW TABLES and DESCRIBE are answered")
        if kind == "TABLE_FUNCTION" and node["function"]["function_name"] not in _TABLE_FUNCTIONS:
            raise Refused(
                f"the function {node['function']['function_name']} is not allowed in FROM"
            )
        if kind is None and "info_type" in node:
            raise Refused("only SELECT is answered")

    def _look_at_function(self, node: Mapping[str, Any]) -> None:
        name = node["function_name"].lower()
        if node.get("schema") or node.get("catalog") or name not in _FUNCTIONS:
            raise Refused(f"the function {name} is not allowed")

    def _look_at_table(self, node: Mapping[str, Any]) -> None:
        name = node["table_name"].lower()
        plain = not node["catalog_name"] and node["schema_name"] in ("", "main")
        if not plain or name not in self.tables | self.ctes:
            raise Refused(f"there is no table {node['table_name']!r}; SHOW TABLES lists them")
        if node["at_clause"] is not None:
            raise Refused("AT is not allowed here")


def _words(kind: str) -> str:
    return kind.lower().replace("_", " ").removesuffix(" node")
