// Templates with their output as Jinja2 3.1.6 renders it in the sandboxed environment of transformers
// (trim_blocks, lstrip_blocks, loop controls, its own tojson).

#include "jinja_cases.h"

namespace keysieve::testing {

const std::vector<JinjaCase>& jinja_cases() {
  // clang-format off
  static const std::vector<JinjaCase> cases = {
      {R"T({{ 1 + 2 * 3 - 4 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ -2 ** 2 }})T",
       R"T(5.0 3 -4 2 -2 1024 0.5 4)T"},
      {R"T({{ 1.0 }} {{ 1e16 }} {{ 1e15 }} {{ 0.1 + 0.2 }} {{ 1e-5 }} {{ 1/3 }} {{ 10 / 5 }} {{ 123456789012345680.0 }} {{ 5e-324 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }})T",
       R"T(1.0 1e+16 1000000000000000.0 0.30000000000000004 1e-05 0.3333333333333333 2.0 1.2345678901234568e+17 5e-324 3.0 0.5)T"},
      {R"T({{ true }} {{ false }} {{ none }} {{ True }} {{ None }} {{ True + 1 }} {{ true == 1 }} {{ 1 == 1.0 }} {{ 'a' == 1 }})T",
       R"T(True False None True None 2 True True False)T"},
      {R"T({{ 1 ~ 'a' ~ none ~ 2.5 }} {{ 'a' ~ (1 + 2) }})T",
       R"T(1aNone2.5 a3)T"},
      {R"T({{ 'ab' * 3 }} {{ [1,2] * 2 }} {{ [1] + [2,'x'] }} {{ (1,2) + (3,) }} {{ () }} {{ (1,) }})T",
       R"T(ababab [1, 2, 1, 2] [1, 2, 'x'] (1, 2, 3) () (1,))T"},
      {R"T({{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 'a' < 'b' }} {{ [1,2] < [1,3] }} {{ 3 >= 3 }} {{ 1 != 2 }})T",
       R"T(True False True True True True)T"},
      {R"T({{ 'a' in 'abc' }} {{ 'x' not in 'abc' }} {{ 2 in [1,2] }} {{ 'k' in {'k':1} }} {{ not 'a' in 'abc' }} {{ '' in '' }} {{ 1 in [true] }})T",
       R"T(True True True True False True True)T"},
      {R"T({{ 1 if true else 2 }} {{ 1 if false }}| {{ 'x' if nothing else 'y' }} {{ 1 if 0 else 2 if 0 else 3 }})T",
       R"T(1 | y 3)T"},
      {R"T({{ [1,2,3][::-1] }} {{ 'hello'[1:3] }} {{ 'hello'[-1] }} {{ 'naïve🙂'[::-1] }} {{ [1,2,3,4][1::2] }} {{ 'abc'[5:] }}| {{ [1,2,3][-2:] }} {{ (1,2,3)[:2] }} {{ 'abcdef'[4:1:-1] }})T",
       R"T([3, 2, 1] el o 🙂evïan [2, 4] | [2, 3] (1, 2) edc)T"},
      {R"T({{ {'a': 1, 'b': [1, 'x', none, true, 1.5]} }} {{ {} }} {{ [] }} {{ ['it\'s', "q\"", 'both\'"'] }} {{ ['\n\t\\\x01é\u200b'] }})T",
       R"T({'a': 1, 'b': [1, 'x', None, True, 1.5]} {} [] ["it's", 'q"', 'both\'"'] ['\n\t\\\x01é\u200b'])T"},
      {R"T({{ 'a\nb\tc\x41\u00e9\'' }} {{ "d\"q" }} {{ 'a' 'b' "c" }} {{ '\q' }} {{ '\101' }})T",
       "a\nb\tcAé' d\"q abc \\q A"},
      {R"T({{ 1_000 }} {{ 0x1F }} {{ 0b101 }} {{ 0o17 }} {{ 1e3 }})T",
       R"T(1000 31 5 15 1000.0)T"},
      {R"T({{ undefined_thing }}|{{ messages[99] }}|{{ messages[0].nope }}|{{ messages[0]['nope'] }})T",
       R"T(|||)T"},
      {R"T({{ not a }} {{ a or 'b' }} {{ a and 'b' }} {{ 0 or [] or 'z' }} {{ 1 and 0 }} {{ not 0 and 1 }})T",
       R"T(True b  z 0 1)T"},
      {R"T({{ -1|abs }} {{ - 5 }} {{ +3 }} {{ --4 }} {{ (1,2)|length }} {{ 'ab'|length + 1 }} {{ 1 + 2|string|length }})T",
       R"T(1 -5 3 4 2 3 2)T"},
      {R"T({{ {'a': {'b': {}}} }}{{ {'a':1}['a'] }} {{ {'a':{'b':2}}.a.b }} {{ [[1]][0][0] }} {{ 'x'.upper() }})T",
       R"T({'a': {'b': {}}}1 2 1 X)T"},
      {R"T({{ x is defined }} {{ messages is defined }} {{ x is undefined }} {{ none is none }} {{ x is none }} {{ 'a' is string }} {{ 1 is string }} {{ {} is mapping }} {{ [] is mapping }} {{ [] is iterable }} {{ 1 is iterable }} {{ 'a' is sequence }} {{ 1 is number }} {{ true is number }} {{ true is boolean }} {{ 1 is boolean }} {{ true is true }} {{ 1 is true }} {{ false is false }} {{ 2 is even }} {{ 3 is odd }} {{ 3 is equalto 3 }} {{ 3 is eq(4) }} {{ 4 is divisibleby 2 }} {{ 1 is integer }} {{ true is integer }} {{ 1.5 is float }} {{ 'a' is in 'abc' }} {{ 'a' is not string }} {{ 'ABC' is upper }} {{ 'abc' is lower }} {{ none is sameas none }} {{ tools is not none }})T",
       R"T(False True True True False True False True False True False True True True True False True False True True True True False True True False True True False True True True True)T"},
      {R"T({% if x is not defined or x is none %}yes{% endif %} {{ 'y' if x is defined and x else 'n' }} {{ 5 is gt 3 }} {{ 5 is lt(3) }})T",
       R"T(yes n True False)T"},
      {R"T({{ '  a b '|trim }}|{{ 'xxaxx'|trim('x') }}|{{ 'abc'|upper }} {{ 'ÄB'|lower }} {{ 'hELLO wORLD'|capitalize }} {{ "it's a test-case (foo)"|title }})T",
       R"T(a b|a|ABC äb Hello world It's A Test-Case (Foo))T"},
      {R"T({{ [1,2,3]|join(', ') }} {{ ['a','b']|join }} {{ messages|join('|', attribute='role') }} {{ x|default('d') }} {{ ''|default('d') }} {{ ''|default('d', true) }} {{ none|d('q') }})T",
       R"T(1, 2, 3 ab system|user|assistant|user d  d None)T"},
      {R"T({{ [3,1,2]|sort }} {{ ['b','A','c']|sort }} {{ ['b','A','c']|sort(case_sensitive=true) }} {{ [3,1,2]|sort(reverse=true) }} {{ messages|sort(attribute='role')|map(attribute='role')|list }})T",
       R"T([1, 2, 3] ['A', 'b', 'c'] ['A', 'b', 'c'] [3, 2, 1] ['assistant', 'system', 'user', 'user'])T"},
      {R"T({{ [1,2,2,3,1]|unique|list }} {{ ['a','A','b']|unique|list }} {{ [1,2,3]|reverse|list }} {{ 'abc'|reverse }} {{ [1,2,3]|sum }} {{ [1,2,3]|first }} {{ [1,2,3]|last }} {{ []|first }}| {{ 'abc'|first }} {{ 'abc'|list }})T",
       R"T([1, 2, 3] ['a', 'b'] [3, 2, 1] cba 6 1 3 | a ['a', 'b', 'c'])T"},
      {R"T({{ {'b':1,'a':2}|dictsort }} {{ {'b':1,'a':2}|dictsort(by='value') }} {{ {'b':1,'a':2}|items|list }} {{ {'b':1}|list }} {{ {'b':1,'a':2}|length }})T",
       R"T([('a', 2), ('b', 1)] [('b', 1), ('a', 2)] [('b', 1), ('a', 2)] ['b'] 2)T"},
      {R"T({{ 'a-b-c'|replace('-', '+') }} {{ 'aaa'|replace('a','b',2) }} {{ 42|string + 'x' }} {{ '42'|int + 1 }} {{ 'x'|int }} {{ 'x'|int(7) }} {{ '3.9'|int }} {{ 3.9|int }} {{ '2.5'|float }} {{ 3|float }} {{ 'z'|float }})T",
       R"T(a+b+c bba 42x 43 0 7 3 3 2.5 3.0 0.0)T"},
      {R"T({{ 'line1\nline2\n\nline3'|indent }}|{{ 'a\nb'|indent(2, true) }}|{{ 'a\n\nb'|indent(2, blank=true) }}|{{ 2.5|round }} {{ 3.14159|round(2) }} {{ 2.1|round(0,'ceil') }} {{ -3|abs }} {{ -2.5|abs }})T",
       R"T(line1
    line2

    line3|  a
  b|a
  
  b|2.0 3.14 3.0 3 2.5)T"},
      {R"T({{ '<a href="x">&\'</a>'|e }} {{ '<b>'|safe }} {{ 'a b  c'|wordcount }} {{ [3,1]|min }} {{ [3,1]|max }} {{ '%s is %d'|format('x', 3) }} {{ '%05.2f|%-5s|%3d' % (1.5, 'ab', 7) }} {{ '%s' % 'q' }})T",
       R"T(&lt;a href=&#34;x&#34;&gt;&amp;&#39;&lt;/a&gt; <b> 3 1 3 x is 3 01.50|ab   |  7 q)T"},
      {R"T({{ messages|map(attribute='content')|map('trim')|join('/') }} {{ [1,2,3,4]|select('even')|list }} {{ [1,2,3,4]|reject('even')|list }} {{ messages|selectattr('role','equalto','user')|list|length }} {{ messages|rejectattr('role','eq','user')|map(attribute='role')|list }} {{ [0,1,'']|select|list }} {{ [1,2,3]|select('gt',1)|list }} {{ messages|selectattr('nope')|list }} {{ ['a','b']|map('upper')|list }})T",
       R"T(Be brief./What is 2+2?/<think>
sum
</think>

4/Thanks, naïve 🙂 [2, 4] [1, 3] 2 ['system', 'assistant'] [1] [2, 3] [] ['A', 'B'])T"},
      {R"T({{ tools|tojson }}
{{ tools|tojson(indent=4) }}
{{ {'a':[],'b':{},'c':none,'d':true,'e':1.0,'f':'é\n"'}|tojson }} {{ [1,[2]]|tojson(indent=2) }} {{ {'b':1,'a':2}|tojson(sort_keys=true) }} {{ {'a':1,'b':2}|tojson(separators=(',',':')) }} {{ '<'|tojson }})T",
       R"T([{"type": "function", "function": {"name": "get_weather", "description": "Gets \"weather\" <b>&", "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Zürich", "a"]}, "n": {"type": "number"}}, "required": ["city"]}}}]
[
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Gets \"weather\" <b>&",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {
                        "type": "string",
                        "enum": [
                            "Zürich",
                            "a"
                        ]
                    },
                    "n": {
                        "type": "number"
                    }
                },
                "required": [
                    "city"
                ]
            }
        }
    }
]
{"a": [], "b": {}, "c": null, "d": true, "e": 1.0, "f": "é\n\""} [
  1,
  [
    2
  ]
] {"a": 2, "b": 1} {"a":1,"b":2} "<")T"},
      {R"T({{ ' ab '.strip() }}|{{ 'xxa'.lstrip('x') }}|{{ 'axx'.rstrip('x') }}|{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a b c d'.split(' ', 2) }} {{ 'a b c'.split(none, 1) }} {{ 'a-b-c'.rsplit('-', 1) }} {{ ''.split(',') }} {{ ''.split() }} {{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x','bc')) }})T",
       R"T(ab|a|a|['a', 'b', '', 'c'] ['a', 'b'] ['a', 'b', 'c d'] ['a', 'b c'] ['a-b', 'c'] [''] [] True True)T"},
      {R"T({{ 'aXb'.replace('X','--') }} {{ 'aXbX'.replace('X','-',1) }} {{ 'hello world'.title() }} {{ "it's".title() }} {{ '-'.join(['a','b']) }} {{ 'hello'.find('l') }} {{ 'hello'.find('z') }} {{ 'hello'.rfind('l') }} {{ 'hello'.count('l') }} {{ 'é🙂x'.find('x') }} {{ 'a\nb\r\nc'.splitlines() }} {{ '{} and {}'.format(1,'b') }} {{ '{x}{{}}'.format(x=2) }} {{ '{1}{0}'.format('a','b') }} {{ 'a=b=c'.partition('=') }} {{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('bc') }})T",
       R"T(a--b a-bX Hello World It'S a-b 2 -1 3 2 2 ['a', 'b', 'c'] 1 and b 2{} ba ('a', '=', 'b=c') bc a)T"},
      {R"T({{ 'abc'.isalpha() }} {{ '12'.isdigit() }} {{ ' '.isspace() }} {{ 'AB'.isupper() }} {{ 'ab1'.isalnum() }} {{ 'abc'.replace('','-') }})T",
       R"T(True True True True True -a-b-c-)T"},
      {R"T({{ {'a':1,'b':2}.items()|list }} {{ {'a':1}.keys()|list }} {{ {'a':1}.values()|list }} {{ {'a':1}.get('a') }} {{ {'a':1}.get('z') }} {{ {'a':1}.get('z', 'dflt') }} {{ {'items':5}['items'] }} {{ [1,2,1].count(1) }} {{ [1,2].index(2) }})T",
       R"T([('a', 1), ('b', 2)] ['a'] [1] 1 None dflt 5 2 1)T"},
      {R"T({% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.previtem.role if not loop.first }}>{{ (loop.nextitem|default({})).role }};{{ loop.cycle('a','b') }}{% endfor %})T",
       R"T(10TrueFalse443>user;a21FalseFalse432system>assistant;b32FalseFalse421user>user;a43FalseTrue410assistant>;b)T"},
      {R"T({% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}:{{ m.content }} {% else %}none{% endfor %}{% for m in [] %}x{% else %}empty{% endfor %})T",
       R"T(1/2:What is 2+2? 2/2:Thanks, naïve 🙂 empty)T"},
      {R"T({% for k, v in {'a':1,'b':2}.items() %}{{ k }}={{ v }},{% endfor %}{% for a, (b, c) in [(1,(2,3))] %}{{ a+b+c }}{% endfor %}{% for c in 'aé' %}[{{ c }}]{% endfor %}{% for k in {'q':1} %}{{ k }}{% endfor %}{% for x in undefd %}x{% endfor %})T",
       R"T(a=1,b=2,6[a][é]q)T"},
      {R"T({% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %} {{ range(3)|list }} {{ range(1,10,3)|list }} {{ range(3,0,-1)|list }})T",
       R"T(0134 [0, 1, 2] [1, 4, 7] [3, 2, 1])T"},
      {R"T({% set x = 1 %}{% for i in range(3) %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}{% if true %}{% set x = 9 %}{% endif %}{{ x }})T",
       R"T(22219)T"},
      {R"T({% set ns = namespace(a=1, b='q') %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.c is defined }}{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set t = 1, 2 %}{{ t }})T",
       R"T(4qFalse12(1, 2))T"},
      {R"T({% set x %}block {{ 1 + 1 }}{% endset %}[{{ x }}]{% set y | upper | trim %}  abc {% endset %}[{{ y }}]{% filter upper %}abc{{ 'd' }}{% endfilter %}{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }})T",
       R"T([block 2][ABC]ABCD3False)T"},
      {R"T({% macro greet(name, punct='!') %}Hello {{ name }}{{ punct }}{% endmacro %}{{ greet('A') }} {{ greet('B', punct='?') }} {{ greet(name='C') }}{{ greet() }}{% macro fact(n) %}{% if n <= 1 %}1{% else %}{{ n * fact(n - 1)|int }}{% endif %}{% endmacro %} {{ fact(5) }})T",
       R"T(Hello A! Hello B? Hello C!Hello ! 120)T"},
      {R"T({% macro wrap(t) %}<{{ t }}>{{ caller('z') }}</{{ t }}>{% endmacro %}{% call(v) wrap('b') %}in {{ v }}{% endcall %}{% macro m() %}{{ g }}{% endmacro %}{% set g = 5 %}{{ m() }})T",
       R"T(<b>in z</b>5)T"},
      {R"T(a
  {% if true %}
  b
  {% endif %}
c
{# comment #}
  {# c2 #}  
d {%- if true -%}  e  {%- endif -%}  f
{{ 1 }}
  {{- 2 -}}
 3 {{ 4 }}
)T",
       R"T(a
  b
c
  
def
123 4)T"},
      {R"T({%+ if true %}x{% endif +%}
y
  {%+ if true %}z{% endif %}


w{#- c -#}  
  v

)T",
       R"T(x
y
  z

wv
)T"},
      {R"T({% raw %}{{ not }} {% if %}{% endraw %}|{%- raw -%}  {{ x }}  {%- endraw -%}  z
{% raw %}
 a{% endraw %}
b)T",
       R"T({{ not }} {% if %}|{{ x }}z

 ab)T"},
      {"  {% for i in [1,2] %}\n    {{ i }}\n  {% endfor %}\n\ttab\n\t{% set q = 1 %}\nend",
       "    1\n    2\n\ttab\nend"},
      {R"T({{ '}}' }}{{ '%}' }}{% if '%}' == '%}' %}ok{% endif %}{{ "{{ x }}" }}{ {{ 1 }} } {a} {)T",
       R"T(}}%}ok{{ x }}{ 1 } {a} {)T"},
      {"line\r\nnext\r{% if true %}\r\nx{% endif %}\r\n",
       R"T(line
next
x)T"},
      {R"T({{ dict(a=1, b='x') }} {{ dict({'q':1}, r=2) }} {{ strftime_now('%d %b %Y') }})T",
       R"T({'a': 1, 'b': 'x'} {'q': 1, 'r': 2} 26 Jul 2024)T"},
      {R"T({% if messages[0]['role'] == 'system' %}{% set sys = messages[0]['content'] %}{% set loop_messages = messages[1:] %}{% endif %}{{ sys }}{{ loop_messages|length }})T",
       R"T(Be brief. 3)T"},
      {R"T({% generation %}g{{ 1 }}{% endgeneration %}{% if not true %}{% elif 1 %}el{% else %}x{% endif %})T",
       R"T(g1el)T"},
      {R"T({{ messages|length }} {{ messages[-1].content }} {{ (messages|last).role }} {{ messages[-1]['content'][:6] }} {{ messages.0.role }} {{ ('a' if true else 'b') ~ 'c' }})T",
       R"T(4 Thanks, naïve 🙂 user Thanks system ac)T"},
      {R"T({{ 'a' 'b' | upper ~ 'c' }} {{ ['x','y'][1] | upper }} {{ {'f': 'q'}.f | upper }} {{ 'abc' is string and 1 }} {{ not x is defined }} {{ 1 if x is defined else 2 }})T",
       R"T(ABc Y Q 1 True 2)T"},
      {R"T({{ (1 if true else 2) + 3 }} {{ [1 if true else 2, 3] }} {{ 'x' ~ (none or 'y') }} {{ 10 - 2 - 3 }} {{ 100 / 10 / 2 }} {{ 2 ** 3 ** 2 }} {{ 1 ~ 1 ~ 2 }} {{ '' is string }} {{ 3 == 3 and 4 != 5 or false }})T",
       R"T(4 [1, 3] xy 5 5.0 64 112 True True)T"},
      {R"T({{ {1:'a', 'b':2, true:'c'} }} {{ {1:'a'}[1] }} {{ {1:'a'}[true] }} {{ 1 in {1:2} }} {{ '1' in {1:2} }} {{ {1:2}.get(1) }} {{ {2:1, 1:3}|dictsort }} {{ {2:1, 1:[none]}|tojson(sort_keys=true) }} {{ {true:0}|tojson }} {{ {1:2}|list }} {{ {1:2} == {1:2} }} {{ {1:2}.items()|list }})T",
       R"T({1: 'c', 'b': 2} a a True False 2 [(1, 3), (2, 1)] {"1": [null], "2": 1} {"true": 0} [1] True [(1, 2)])T"},
      {R"T({{ 'é🙂\x7f\x01"'|tojson(ensure_ascii=true) }} {{ 'é'|tojson(true) }} {{ 'é'|tojson }} {{ [1]|tojson(false, 2) }} {{ {'ü': 1}|tojson(ensure_ascii=true, indent=1) }})T",
       R"T("\u00e9\ud83d\ude42\u007f\u0001\"" "\u00e9" "é" [
  1
] {
 "\u00fc": 1
})T"},
      {R"T({{ none|select|list }} {{ 0|map('upper')|list }} {{ none|map(attribute='x')|list }} {{ none|selectattr('type', 'equalto', 'x')|list|length }} {{ ''|reject|list }})T",
       R"T([] [] [] 0 [])T"},
      {R"T({{ '<a>'|safe + '<b>' }} {{ '<a>' + '<b>'|safe }} {{ '<a>'|safe ~ '<b>' }} {{ '<a>'|e }} {{ '<a>'|e|e }} {{ ('<a>'|safe)|e }} {{ '<'|escape + '>' }} {{ ('<'|safe) * 2 + '<' }} {{ ('<'|safe)|string + '>' }} {{ 'a' + 'b"' }} {{ ('<'|safe + '"') + '&' }})T",
       R"T(<a>&lt;b&gt; &lt;a&gt;<b> <a><b> &lt;a&gt; &lt;a&gt; <a> &lt;&gt; <<&lt; <&gt; ab" <&#34;&amp;)T"},
      {R"T({{ 42|round }} {{ 42|round(1) }} {{ 1234.5|round(-2) }} {{ 42|round(0, 'ceil') }} {{ true|round }})T",
       R"T(42 42 1200.0 42.0 1)T"},
  };
  // clang-format on
  return cases;
}

}  // namespace keysieve::testing
