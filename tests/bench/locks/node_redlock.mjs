// The peer node-redlock 5 on ioredis with auto-pipelining: one connection. Speaks as driving.py says.
// --poll-s is its retryDelay; the jitter is half of it, as in its defaults (200 and 100 ms).
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import { Redis } from "ioredis";
import Redlock from "redlock";

const LEASE_TTL_MS = 10_000;
const LEAVING_WITHIN_MS = 5_000;
const HOT_NAME = "bench:hot";

const { positionals, values: job } = parseArgs({
  allowPositionals: true,
  options: {
    url: { type: "string" },
    tasks: { type: "string" },
    prefix: { type: "string" },
    "process-number": { type: "string" },
    "poll-s": { type: "string", default: "0.2" },
  },
});
const tasks = Array.from({ length: Number(job.tasks) }, (_, task) => task);
const retryDelay = Number(job["poll-s"]) * 1000;
const client = new Redis(job.url, { enableAutoPipelining: true });
const redlock = new Redlock([client], { retryCount: -1, retryDelay, retryJitter: retryDelay / 2 });

await client.ping();
const window = await theWindow();
await (positionals[0] === "distinct" ? distinct() : hot());
process.exit(0);

async function theWindow() {
  process.stdout.write("ready\n");
  const lines = createInterface({ input: process.stdin });
  const line = await new Promise((resolve) => lines.once("line", resolve));
  lines.close();
  const { begins_s, ends_s } = JSON.parse(line);
  return { beginsMs: begins_s * 1000, endsMs: ends_s * 1000 };
}

// The monotonic clock that all processes of a machine share: performance.now() begins at another moment in each.
function clockMs() {
  const [seconds, nanoseconds] = process.hrtime();
  return seconds * 1e3 + nanoseconds / 1e6;
}

async function distinct() {
  let cycles = 0;
  const work = async (task) => {
    for (let number = 0; ; number += 1) {
      const lock = await redlock.acquire([`${job.prefix}:${task}:${number}`], LEASE_TTL_MS);
      await lock.release();
      const nowMs = clockMs();
      if (nowMs >= window.endsMs) return;
      if (nowMs >= window.beginsMs) cycles += 1;
    }
  };
  await Promise.all(tasks.map(work));
  await say({ cycles });
}

async function hot() {
  const turns = [];
  const waitingSinceMs = tasks.map(() => null);
  const work = async (task) => {
    let leftMs = 0;
    while (leftMs < window.endsMs) {
      const sinceMs = clockMs();
      waitingSinceMs[task] = sinceMs;
      const lock = await redlock.acquire([HOT_NAME], LEASE_TTL_MS);
      const enteredMs = clockMs();
      await new Promise(setImmediate); // lets the others run, so that two inside at once would be seen
      leftMs = clockMs();
      waitingSinceMs[task] = null;
      turns.push([task, us(sinceMs), us(enteredMs), us(leftMs), 0]);
      await lock.release();
    }
  };
  const all = Promise.all(tasks.map(work));
  await new Promise((resolve) => setTimeout(resolve, window.endsMs - clockMs()));
  const waiting = tasks.filter((task) => waitingSinceMs[task] !== null).map((task) => [task, us(waitingSinceMs[task])]);
  await say({ turns, waiting });
  await Promise.race([all, new Promise((resolve) => setTimeout(resolve, LEAVING_WITHIN_MS))]);
}

// Microseconds from the window's begin.
function us(atMs) {
  return Math.floor((atMs - window.beginsMs) * 1000);
}

function say(found) {
  return new Promise((resolve) => process.stdout.write(`${JSON.stringify(found)}\n`, resolve));
}
