// Packages of npm, each behind its name with a few lines that use it.

//: acorn
import * as m from 'acorn';
console.log(m.parse('a + 1', { ecmaVersion: 2022 }).body.length)

//: ajv
import Ajv from 'ajv';
const v = new Ajv().compile({ type: 'object', required: ['a'] });
console.log(v({ a: 1 }), v({}), v.errors[0].message)

//: async
import m from 'async';
m.mapSeries([1, 2], async (x) => x * 2, (e, r) => console.log(e, r))

//: bignumber.js
import B from 'bignumber.js';
console.log(new B('0.1').plus('0.2').toString())

//: bn.js
import BN from 'bn.js';
console.log(new BN('123456789012345678901234567890').pow(new BN(2)).toString(16))

//: chalk
import c from 'chalk';
console.log(c.level, c.red('a'))

//: cheerio
import { load } from 'cheerio';
console.log(load('<p>a<b>c</b></p>')('b').text())

//: commander
import { Command } from 'commander';
const p = new Command().option('-a <n>');
p.parse(['node', 'x', '-a', '3']);
console.log(p.opts())

//: csv-parse
import { parse } from 'csv-parse/sync';
console.log(parse('a,b\n1,2', { columns: true }))

//: date-fns
import { addDays, format } from 'date-fns';
console.log(format(addDays(new Date(2024, 1, 28), 2), 'yyyy-MM-dd'))

//: dayjs
import d from 'dayjs';
console.log(d('2024-02-28').add(2, 'day').format('YYYY-MM-DD'))

//: decimal.js
import D from 'decimal.js';
console.log(new D(2).sqrt().toString())

//: ejs
import ejs from 'ejs';
console.log(ejs.render('<% for (const x of a) { %><%= x %>;<% } %>', { a: [1, '<'] }))

//: eventemitter3
import E from 'eventemitter3';
const e = new E();
e.once('a', (x) => console.log(x));
e.emit('a', 1);
e.emit('a', 2)

//: fast-xml-parser
import { XMLParser } from 'fast-xml-parser';
console.log(new XMLParser().parse('<a><b>1</b></a>'))

//: fflate
import { gzipSync, gunzipSync, strToU8, strFromU8 } from 'fflate';
console.log(strFromU8(gunzipSync(gzipSync(strToU8('text')))))

//: fuse.js
import F from 'fuse.js';
console.log(new F(['apple', 'banana']).search('aple')[0].item)

//: handlebars
import H from 'handlebars';
console.log(H.compile('{{#each a}}{{this}},{{/each}}')({ a: [1, 2] }))

//: iconv-lite
import i from 'iconv-lite';
console.log(i.decode(Buffer.from([0xe4]), 'latin1'), i.encode('ä', 'utf16').length)

//: immer
import { produce } from 'immer';
console.log(produce({ a: [1] }, (d) => { d.a.push(2) }))

//: immutable
import { Map } from 'immutable';
console.log(Map({ a: 1 }).set('b', 2).toJS())

//: ioredis-mock
import R from 'ioredis-mock';
const r = new R();
await r.set('a', 1);
console.log(await r.get('a'));
r.disconnect()

//: js-yaml
import * as y from 'js-yaml';
console.log(y.load('a: [1, {b: c}]'), y.dump({ a: [1] }))

//: json5
import J from 'json5';
console.log(J.parse("{a: 1, /* b */ 'c': .5,}"))

//: jsonwebtoken
import j from 'jsonwebtoken';
const t = j.sign({ a: 1 }, 's', { noTimestamp: true });
console.log(t, j.verify(t, 's'))

//: jszip
import Z from 'jszip';
const z = new Z();
z.file('a', 'text');
const b = await z.generateAsync({ type: 'uint8array' });
console.log(await (await Z.loadAsync(b)).file('a').async('string'))

//: lodash
import _ from 'lodash';
console.log(_.chunk([1, 2, 3], 2), _.merge({ a: { b: 1 } }, { a: { c: 2 } }))

//: luxon
import { DateTime } from 'luxon';
console.log(DateTime.fromISO('2024-02-28T00:00', { zone: 'Asia/Tokyo' }).plus({ days: 2 }).toISO())

//: marked
import { marked } from 'marked';
console.log(marked.parse('# a\n\n*b*'))

//: mathjs
import { evaluate } from 'mathjs';
console.log(evaluate('sqrt(3^2 + 4^2)'), evaluate('det([1, 2; 3, 4])'))

//: minimatch
import { minimatch } from 'minimatch';
console.log(minimatch('a/b.js', '**/*.js'))

//: moment
import m from 'moment';
console.log(m.utc('2024-02-28').add(2, 'days').format())

//: mustache
import M from 'mustache';
console.log(M.render('{{#a}}{{.}};{{/a}}', { a: [1, '<'] }))

//: nanoid
import { customAlphabet } from 'nanoid';
console.log(customAlphabet('a', 5)())

//: node-forge
import f from 'node-forge';
console.log(f.md.sha256.create().update('x').digest().toHex())

//: p-limit
import p from 'p-limit';
const l = p(1);
console.log(await Promise.all([1, 2].map((x) => l(async () => x * 2))))

//: papaparse
import P from 'papaparse';
console.log(P.parse('a,b\n1,2', { header: true }).data)

//: pino
import p from 'pino';
p({ base: null, timestamp: false }, p.destination({ fd: 1, sync: true })).info({ a: 1 }, 'text')

//: protobufjs
import p from 'protobufjs';
const t = p.parse('syntax = "proto3"; message A { int32 a = 1; }').root.lookupType('A');
console.log(t.decode(t.encode({ a: 5 }).finish()).a)

//: qs
import qs from 'qs';
console.log(qs.parse('a[b]=1&a[c][]=2'), qs.stringify({ a: [1, 2] }))

//: ramda
import * as R from 'ramda';
console.log(R.pipe(R.map(R.inc), R.sum)([1, 2]))

//: rxjs
import { of, map, toArray } from 'rxjs';
of(1, 2).pipe(map((x) => x * 2), toArray()).subscribe((x) => console.log(x))

//: semver
import s from 'semver';
console.log(s.satisfies('1.2.3', '^1.1'), s.inc('1.2.3', 'minor'))

//: superstruct
import { object, string, is } from 'superstruct';
console.log(is({ a: 'b' }, object({ a: string() })))

//: tslib
import { __rest } from 'tslib';
console.log(__rest({ a: 1, b: 2 }, ['a']))

//: typescript
import ts from 'typescript';
console.log(ts.transpile('const a: number = 1', { target: 'es2020' }))

//: uuid
import { v5 } from 'uuid';
console.log(v5('a', v5.URL))

//: validator
import v from 'validator';
console.log(v.isEmail('a@example.org'), v.escape('<'))

//: winston
import w from 'winston';
w.createLogger({ transports: [new w.transports.Console()] }).info('text')

//: yaml
import y from 'yaml';
console.log(y.parse('a: &x [1]\nb: *x'), y.stringify({ a: [1] }))

//: yargs
import y from 'yargs';
console.log(y(['--a', '3']).parse().a)

//: zod
import { z } from 'zod';
console.log(z.object({ a: z.number() }).safeParse({ a: 'b' }).success)
