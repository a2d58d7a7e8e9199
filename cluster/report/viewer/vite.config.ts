import { defineConfig } from "vite";

// One classic script: a browser loads no module from file://.
export default defineConfig({
  build: {
    outDir: "../static",
    emptyOutDir: true,
    target: "es2022",
    cssTarget: ["chrome125", "firefox125", "safari18"],
    lib: { entry: "src/main.tsx", formats: ["iife"], name: "viewer", fileName: () => "viewer.js", cssFileName: "viewer" },
  },
  define: { "process.env.NODE_ENV": '"production"' },
});
