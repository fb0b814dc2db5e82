// Streams one chat answer:   node client.js HOST:PORT "Your question"   (PYRUNTIME_API_KEY is sent if it is set)
const path = require("path");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const [address = "127.0.0.1:50051", question = "Why is the sky blue?"] = process.argv.slice(2);
const protos = process.env.PYRUNTIME_PROTOS || path.join(__dirname, "../../protos");

const definition = protoLoader.loadSync("pyruntime/v1/chat.proto", {
  includeDirs: [protos], keepCase: true, longs: String, enums: String, oneofs: true,
});
const { ChatService } = grpc.loadPackageDefinition(definition).pyruntime.v1;

const client = new ChatService(address, grpc.credentials.createInsecure());
const metadata = new grpc.Metadata();
if (process.env.PYRUNTIME_API_KEY) metadata.set("authorization", `Bearer ${process.env.PYRUNTIME_API_KEY}`);

const call = client.StreamChat({
  request: {
    messages: [{ role: "ROLE_USER", text: question }],
    sampling: { temperature: 0 },
    stopping: { max_output_tokens: 128 },
  },
}, metadata);

call.on("data", (event) => {
  if (event.event === "delta") process.stdout.write(event.delta.text || "");
  if (event.event === "done") process.stdout.write(`\n[${event.done.usage.output_tokens} tokens]\n`);
});
call.on("error", (error) => {
  console.error(`${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 1;
});
call.on("end", () => client.close());
