// client.js: a client of its own for the protocol of logical replication.  Reads
// a slot up to the message that ends with its second argument, and prints changes
// as lines of key (column id), tab, envelope, like the other consumers of events.pl.
//
// It fails where a transaction with rows has no message of its run, or other rows
// than the message says.  PGHOST and so on say where.
//
// node client.js slot publication end

const { LogicalReplicationService, PgoutputPlugin } = require('pg-logical-replication');
const { types } = require('pg');

const [slot, publication, end] = process.argv.slice(2);
const TIMESTAMP = 1114;
const micros = (text) => Date.parse(text.replace(' ', 'T').slice(0, 23) + 'Z') * 1000;

types.setTypeParser(TIMESTAMP, micros);

const ops = { insert: 'c', update: 'u', delete: 'd' };
const counters = { insert: 'inserted', update: 'updated', delete: 'deleted' };
let transaction = null; // runs' messages by replica, and what came after each
let lines = 0;

function fail(why) {
	console.error(`client.js: ${why}`);
	process.exit(1);
}

// A message of another prefix is the mark that the test has put at the end.
function message({ prefix, content }) {
	if (prefix === 'end') {
		return content.toString() === end;
	}
	if (prefix === 'tablesync') {
		const run = JSON.parse(content.toString());
		transaction.messages.set(run.replica, run);
		transaction.rows.set(run.replica, { insert: 0, update: 0, delete: 0 });
	}
	return false;
}

function print(key, op, before, after, table, lsn) {
	const envelope = { op, before, after, source: { table, lsn: `${lsn} ${++lines}` } };
	console.log(`${JSON.stringify(key)}\t${JSON.stringify(envelope)}`);
}

function change(lsn, { tag, relation, key, old, new: row }) {
	const name = `${relation.schema}.${relation.name}`;
	const counted = transaction.rows.get(name);
	if (!counted) {
		fail(`${tag} of ${name} without a message of its run`);
	}
	counted[tag]++;
	const { id } = row || old || key;
	print({ id }, ops[tag], old || null, row || null, relation.name, lsn);
}

function commit() {
	for (const [replica, run] of transaction.messages) {
		const counted = transaction.rows.get(replica);
		for (const tag of Object.keys(counters)) {
			const said = run[counters[tag]];
			if (said !== null && said !== counted[tag] && (counted.insert || counted.update || counted.delete || run.complete === false)) {
				fail(`run ${run.run} of ${replica} has ${counted[tag]} rows of ${tag}, its message says ${said}`);
			}
		}
	}
}

const service = new LogicalReplicationService({}, { acknowledge: { auto: false, timeoutSeconds: 0 } });

service.on('error', (error) => fail(error.message));
service.on('data', async (lsn, log) => {
	if (log.tag === 'begin') {
		transaction = { messages: new Map(), rows: new Map() };
	} else if (log.tag === 'message') {
		transaction.ends = message(log) || transaction.ends;
	} else if (log.tag in counters) {
		change(lsn, log);
	} else if (log.tag === 'truncate') {
		log.relations.forEach((relation) => print(null, 't', null, null, relation.name, lsn));
	} else if (log.tag === 'commit') {
		commit();
		if (transaction.ends) {
			await service.acknowledge(log.commitEndLsn);
			await service.stop();
			process.exit(0);
		}
	}
});

service.subscribe(new PgoutputPlugin({ protoVersion: 1, publicationNames: [publication], messages: true }), slot)
	.catch((error) => fail(error.message));
