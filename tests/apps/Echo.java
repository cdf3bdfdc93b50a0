// Echo: sends bytes to an echo server and compares what comes back, between
// blocking sockets and NIO channels with a selector, in all four pairings.
import java.io.DataInputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.util.Arrays;
import java.util.Random;

public class Echo {
	static final int BYTES = 8_000_000;

	interface Task {
		void run() throws Exception;
	}

	static Thread start(Task task) {
		Thread thread = new Thread(() -> {
			try {
				task.run();
			} catch (Exception e) {
				e.printStackTrace();
				System.exit(1);
			}
		});
		thread.setDaemon(true);
		thread.start();
		return thread;
	}

	static int blockingServer() throws Exception {
		ServerSocket listener = new ServerSocket(0, 50, InetAddress.getByName("127.0.0.1"));
		start(() -> {
			while (true) {
				Socket socket = listener.accept();
				start(() -> {
					socket.getInputStream().transferTo(socket.getOutputStream());
					socket.close();
				});
			}
		});
		return listener.getLocalPort();
	}

	static int selectorServer() throws Exception {
		Selector selector = Selector.open();
		ServerSocketChannel listener = ServerSocketChannel.open();
		listener.bind(new InetSocketAddress("127.0.0.1", 0));
		listener.configureBlocking(false);
		listener.register(selector, SelectionKey.OP_ACCEPT);
		start(() -> {
			while (true) {
				selector.select(key -> {
					try {
						serve(selector, key);
					} catch (Exception e) {
						e.printStackTrace();
						System.exit(1);
					}
				});
			}
		});
		return listener.socket().getLocalPort();
	}

	static void serve(Selector selector, SelectionKey key) throws Exception {
		if (key.isAcceptable()) {
			SocketChannel channel = ((ServerSocketChannel) key.channel()).accept();
			channel.configureBlocking(false);
			channel.register(selector, SelectionKey.OP_READ, ByteBuffer.allocate(20_000).limit(0));
			return;
		}
		SocketChannel channel = (SocketChannel) key.channel();
		ByteBuffer buffer = (ByteBuffer) key.attachment();
		if (!buffer.hasRemaining()) {
			buffer.clear();
			if (channel.read(buffer) < 0) {
				channel.close();
				return;
			}
			buffer.flip();
		}
		channel.write(buffer);
		key.interestOps(buffer.hasRemaining() ? SelectionKey.OP_WRITE : SelectionKey.OP_READ);
	}

	static void blockingClient(int port, byte[] data) throws Exception {
		byte[] back = new byte[BYTES];
		try (Socket socket = new Socket("127.0.0.1", port)) {
			start(() -> socket.getOutputStream().write(data));
			new DataInputStream(socket.getInputStream()).readFully(back);
		}
		compare(data, back);
	}

	static void selectorClient(int port, byte[] data) throws Exception {
		ByteBuffer out = ByteBuffer.wrap(data), back = ByteBuffer.allocate(BYTES);
		Selector selector = Selector.open();
		try (SocketChannel channel = SocketChannel.open(new InetSocketAddress("127.0.0.1", port))) {
			channel.configureBlocking(false);
			channel.register(selector, SelectionKey.OP_READ | SelectionKey.OP_WRITE);
			while (back.hasRemaining()) {
				selector.select(key -> {
					try {
						if (key.isReadable() && channel.read(back) < 0)
							throw new Exception("end of the stream");
						if (key.isValid() && key.isWritable()) {
							channel.write(out);
							if (!out.hasRemaining())
								key.interestOps(SelectionKey.OP_READ);
						}
					} catch (Exception e) {
						e.printStackTrace();
						System.exit(1);
					}
				});
			}
		}
		compare(data, back.array());
	}

	static void compare(byte[] data, byte[] back) {
		if (!Arrays.equals(data, back)) {
			System.err.println("the bytes came back changed");
			System.exit(1);
		}
	}

	public static void main(String[] args) throws Exception {
		byte[] data = new byte[BYTES];
		new Random().nextBytes(data);
		for (int port : new int[] { blockingServer(), selectorServer() }) {
			blockingClient(port, data);
			selectorClient(port, data);
		}
		System.out.println("echoed 4 times " + BYTES);
	}
}
